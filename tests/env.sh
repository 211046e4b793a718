# Sourced by the scripts of tests/: where costly artefacts live. Outside the tree, so that a clean checkout finds them.
cache=${GUESTWIRE_CACHE:-$HOME/.cache/guestwire}
