# Shorthands. CI runs the same steps through .ci/run, so that a laptop and CI cannot disagree.
.PHONY: check lint type layering test demo

check:
	bash .ci/run

lint type layering test:
	bash .ci/run $@

demo:
	python3 install.py --demo
