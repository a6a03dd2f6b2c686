# Shorthands. CI runs the same steps through .ci/run, so that a laptop and CI cannot disagree.
.PHONY: check lint type layering test compile compile-all launches launches-all demo

check:
	bash .ci/run

lint type layering test compile launches:
	bash .ci/run $@

# Every configuration of every kernel, for more cards than CI has time for.
compile-all:
	bash .ci/run compile --all

# What one layer of every model asks of a GPU, for every preset and way to read.
launches-all:
	bash .ci/run launches --all

demo:
	python3 install.py --demo
