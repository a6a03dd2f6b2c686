"""Says what this machine has and what to type next; installs nothing. `--demo` and `--test` hand over to tools/bootstrap.py.

ComfyUI-Manager runs this file without an argument after unpacking the pack. Standard library only, and no syntax newer than
Python 3.8, so that an old Python gets a sentence and not a SyntaxError.
"""

import glob
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys

OLDEST_PYTHON = (3, 10)
OLDEST_COMFYUI = (0, 21)
PACK = os.path.dirname(os.path.abspath(__file__))
BOOTSTRAP = os.path.join(PACK, "tools", "bootstrap.py")
USAGE = """python install.py                   says what this machine has; installs nothing
python install.py --demo [options]  makes .venv, then runs `qvg demo` (--out DIR, --frames N, --seed S, --path STR)
python install.py --test [options]  makes .venv, then runs the tests; options go to pytest"""


def python_complaint(version):
    """Why this Python will not do, or None. `version` is like sys.version_info."""
    if tuple(version[:2]) >= OLDEST_PYTHON:
        return None
    facts = (*version[:2], *OLDEST_PYTHON)
    return "Python {}.{} is too old: QVG needs {}.{} or newer; run this file with a newer one.".format(*facts)


def describe_python():
    """Version and place of this Python, and what is wrong with it."""
    complaint = python_complaint(sys.version_info)
    facts = (platform.python_version(), platform.system(), platform.machine(), sys.executable)
    return complaint or "{} on {} {} ({})".format(*facts)


def load_torch():
    """(torch or None, what to say of it). A torch that cannot be imported is reported, never raised."""
    # The quick check of NVIDIA's driver: the slow one would start CUDA only to count devices.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    try:
        import torch

        return torch, str(torch.__version__)
    except ModuleNotFoundError as error:
        if error.name == "torch":
            return None, "not installed for this Python; ComfyUI brings its own"
        return None, "installed but broken: {}".format(first_line(error))
    except Exception as error:  # a missing DLL, a version clash: whatever it is, the answer is to reinstall torch
        return None, "installed but broken: {}".format(first_line(error))


def first_line(error):
    """The first line of an exception's message, for one-line reports."""
    lines = str(error).splitlines()
    return "{}: {}".format(type(error).__name__, lines[0][:100] if lines else "no message")


def describe_device(torch):
    """The device torch would compute on. Starts CUDA only where there is a GPU to name."""
    if torch is None:
        return "unknown without torch"
    try:
        if torch.cuda.is_available():
            device = torch.cuda.get_device_properties(0)
            maker = "ROCm {}".format(torch.version.hip) if torch.version.hip else "CUDA {}".format(torch.version.cuda)
            others = torch.cuda.device_count() - 1
            more = ", and {} more".format(others) if others else ""
            return "{}, {:.0f} GiB ({}){}".format(device.name, device.total_memory / 2**30, maker, more)
        if torch.backends.mps.is_available():
            return "Apple GPU (MPS)"
        if hasattr(torch, "xpu") and torch.xpu.is_available():
            return "Intel GPU (XPU)"
    except Exception as error:
        return "CPU ({})".format(first_line(error))
    return "CPU, {} cores; no GPU that this torch can use".format(os.cpu_count())


def describe_triton(pack):
    """Whether Triton is there, and whether the pack in the folder `pack` has kernels for it."""
    found = "{} found".format(triton_version()) if importlib.util.find_spec("triton") else "not found"
    if not glob.glob(os.path.join(glob.escape(pack), "kernels", "*", "triton_kernel.py")):
        return found + "; this version has no kernels for it and computes in torch"
    return found + "; optional, used on NVIDIA and AMD GPUs where it is present"


def triton_version():
    """The version of the Triton that is installed, under whatever name it was published."""
    for name in ("triton", "triton-windows", "triton-rocm", "pytorch-triton-rocm", "triton-xpu", "pytorch-triton-xpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown version"


def describe_comfyui(pack):
    """(inside, text): whether the folder `pack` lies in a ComfyUI's custom_nodes, and which ComfyUI that is."""
    custom_nodes = os.path.dirname(pack)
    if os.path.basename(custom_nodes) != "custom_nodes":
        return False, "this folder is not in a custom_nodes folder; ComfyUI will not see it"
    comfyui = os.path.dirname(custom_nodes)
    try:
        with open(os.path.join(comfyui, "comfyui_version.py"), encoding="utf-8") as file:
            version = re.search(r"__version__ = [\"'](\d+)\.(\d+)([^\"']*)", file.read())
    except OSError:
        version = None
    if version is None:
        return True, "{} (version unknown; QVG needs {}.{} or newer)".format(comfyui, *OLDEST_COMFYUI)
    text = "{}.{}{} at {}".format(version[1], version[2], version[3], comfyui)
    if (int(version[1]), int(version[2])) < OLDEST_COMFYUI:
        text += "; too old, QVG needs {}.{} or newer: update ComfyUI".format(*OLDEST_COMFYUI)
    return True, text


def next_step(torch, inside_comfyui):
    """What to type now."""
    if python_complaint(sys.version_info):
        return "install Python 3.10 or newer, then run this file with it"
    if inside_comfyui and torch is None:
        return "run this file with ComfyUI's own Python, or repair its torch; then restart ComfyUI"
    if inside_comfyui:
        return "restart ComfyUI"
    if os.path.isfile(BOOTSTRAP):
        return "python install.py --demo   (a walk through a world, in a .venv of its own; --test runs the tests)"
    return "move this folder into ComfyUI's custom_nodes and restart ComfyUI"


def report():
    """Print, in at most ten lines, what this machine has and what to type next."""
    torch, torch_text = load_torch()
    device = describe_device(torch)
    inside, comfyui = describe_comfyui(PACK)
    print("QVG: long memory for video models. Nothing is installed by this script; it only looks.")
    print("  Python   " + describe_python())
    print("  torch    " + torch_text)
    print("  device   " + device)
    print("  Triton   " + describe_triton(PACK))
    print("  ComfyUI  " + comfyui)
    print("Next: " + next_step(torch, inside))


def hand_over(arguments):
    """Run tools/bootstrap.py with `--demo` or `--test` and what follows: its exit code, or 2 and a sentence if it cannot run."""
    complaint = python_complaint(sys.version_info)
    if complaint is None and not os.path.isfile(BOOTSTRAP):
        rule = "{} needs tools/bootstrap.py, which the published archive leaves out; clone the repository and run it there."
        complaint = rule.format(arguments[0])
    if complaint:
        print("qvg: " + complaint, file=sys.stderr)
        return 2
    spec = importlib.util.spec_from_file_location("qvg_bootstrap", BOOTSTRAP)
    bootstrap = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bootstrap)
    return bootstrap.main(arguments)


def show_all_letters():
    """A console whose letters are those of one part of the world shows others, as in the names of folders, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def main(arguments):
    """Exit code of `python install.py ARGUMENTS`."""
    show_all_letters()
    if not arguments:
        report()
        return 0
    if arguments[0] in ("--demo", "--test"):
        return hand_over(arguments)
    if arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    print("qvg: {!r} is not an option of install.py; use --demo, --test, or nothing.".format(arguments[0]), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
