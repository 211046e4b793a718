# Sourced by the scripts of tests/.

# Where costly artefacts live: outside the tree, so that a clean checkout finds them.
cache=${GUESTWIRE_CACHE:-$HOME/.cache/guestwire}
# A root shell that came from plain `su` lacks these.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
