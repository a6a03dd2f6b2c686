"""`qvg run`: a workflow on somebody's ComfyUI server, from a terminal. Standard library; tqdm and websocket-client
where they are.

address.py     what people type -> where the server is
connection.py  HTTP with patience: a server that is silent for a while is waited for
prompt.py      a workflow file in API format, checked; `--set`
refusal.py     what a server says of a workflow it refuses, in sentences
events.py      what a server tells while it works, over a websocket, or nothing where there is none
outputs.py     files and texts of a run, fetched without overwriting
display.py     what a person sees meanwhile
interrupt.py   Ctrl-C, once however often it is sent
run.py         one run on a server: queued, waited for, cancelled
command.py     the command: from a file to outputs, a report and an exit code
"""
