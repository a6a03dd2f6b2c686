# Shorthands. CI runs the same steps through .ci/run, so that a laptop and CI cannot disagree.
.PHONY: check lint type layering test compile compile-all demo

check:
	bash .ci/run

lint type layering test compile:
	bash .ci/run $@

# Every configuration of every kernel, for more cards than CI has time for.
compile-all:
	bash .ci/run compile --all

demo:
	python3 install.py --demo
