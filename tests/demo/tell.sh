# Sourced by tests/demo/story: how it is told, and how its promises are checked.
#
# A step is a heading, commands as a person would type them, what they print, and a mark for each promise. Commands
# are strings, so what is shown is what is run.
# shellcheck shell=bash

# How much of a command's output is shown.
lines=16 columns=112
# How long something may take to become true, in seconds.
patience=90
# The machine whose prompt a command is typed at: the node itself, or a network namespace.
where=node

bold='' dim='' green='' red='' plain=''
[ -z "${DEMO_COLOR:-}" ] || bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
steps=0 kept=0 broken=()

title() { printf '\n%s%s%s\n' "$bold" "$1" "$plain"; }

step() {
    steps=$((steps + 1))
    printf '\n%s%2d. %s%s\n' "$bold" "$steps" "$1" "$plain"
}

# on MACHINE VERB ARGUMENT…: any of the verbs below, with its command typed there.
on() {
    local where=$1
    shift
    "$@"
}

# run COMMAND: part of the way; it has to work.
run() {
    perform "$1"
    [ "$status" = 0 ] || mark no "${1%%$'\n'*}"
}

# promise TEXT COMMAND [PATTERN]: it works, and prints the extended regular expression PATTERN.
promise() {
    perform "$2"
    mark "$(works_and_prints "${3:-}")" "$1"
}

# await TEXT COMMAND PATTERN: the same, but it may take a while; what it printed at last is shown.
await() {
    local end=$((SECONDS + patience))
    tell "$2"
    attempt "$2"
    while [ "$(works_and_prints "$3")" = no ] && [ $SECONDS -lt $end ]; do
        sleep 0.3
        attempt "$2"
    done
    show
    mark "$(works_and_prints "$3")" "$1"
}

# refused TEXT COMMAND PATTERN: it fails, and prints PATTERN.
refused() {
    perform "$2"
    if [ "$status" != 0 ] && prints "$3"; then mark yes "$1"; else mark no "$1"; fi
}

perform() {
    tell "$1"
    attempt "$1"
    show
}

# Later lines of a command stand below its first.
tell() { printf '    %s%s#%s %s\n' "$dim" "$where" "$plain$bold" "${1//$'\n'/$'\n'        }$plain"; }

# Runs a command and keeps what it prints and its exit code.
attempt() {
    local there=()
    [ "$where" = node ] || there=(ip netns exec "$where")
    status=0
    output=$("${there[@]}" bash -c "$1" 2>&1) || status=$?
}

prints() { grep -qE -e "$1" <<<"$output"; }

works_and_prints() { if [ "$status" = 0 ] && prints "$1"; then echo yes; else echo no; fi; }

show() {
    [ -n "$output" ] || return 0
    tr -d '\r' <<<"$output" | grep . | expand | fold -s -w "$columns" |
        awk -v most="$lines" 'NR <= most { print "      " $0 } END { if (NR > most) print "      … " NR - most " more lines" }'
}

mark() {
    if [ "$1" = yes ]; then
        kept=$((kept + 1))
        printf '    %s✓ %s%s\n' "$green" "$2" "$plain"
    else
        broken+=("$2")
        printf '    %s✗ %s%s (exit code %s)\n' "$red" "$2" "$plain" "$status"
    fi
}

# The last lines; its exit code is the story's.
summary() {
    local text
    title "Summary"
    for text in "${broken[@]}"; do
        printf '    %s✗ %s%s\n' "$red" "$text" "$plain"
    done
    if [ ${#broken[@]} -gt 0 ]; then
        printf '    %d promises were kept, %d broken\n\n' "$kept" "${#broken[@]}"
        return 1
    fi
    printf '    %s✓ all %d promises kept, in %d seconds%s\n\n' "$green" "$kept" "$SECONDS" "$plain"
}
