# The commands of guestwire. CONTRIBUTING.md says what each is for.
.PHONY: setup
setup:
	@tests/setup
