# What the fuzz/run of every crate shares: building a libFuzzer target, and running it. Sourced, not run.
#
# Any toolchain will do, as the coverage pass is LLVM's; libFuzzer itself needs a C++ compiler. All is built and kept in
# target/ at the root: a crate's inputs in target/fuzz/CRATE-TARGET, `corpus` those that reach something new, `found` those
# that end the program. Nothing is fuzzed without a limit of time.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export CARGO_TARGET_DIR=$root/target
triple=x86_64-unknown-linux-gnu
crate=$(basename "$(dirname "$PWD")")

# The folder of a target's inputs.
inputs() {
    mkdir -p "$root/target/fuzz/$crate-$1"/{corpus,found}
    echo "$root/target/fuzz/$crate-$1"
}

# Writes one input for each line of octets in hex on standard input. usage: octets FOLDER
octets() {
    local line number=0
    while read -r line; do
        number=$((number + 1))
        printf '%b' "$(sed 's/ //g; s/../\\x&/g' <<<"$line")" >"$1/line-$number"
    done
}

# Fuzzes, beginning with the inputs of a folder, until one ends the program. More flags for rustc by FUZZ_RUSTFLAGS.
# usage: fuzz TARGET SECONDS SEEDS [OPTION OF LIBFUZZER]...
fuzz() {
    local target=$1 seconds=$2 seeds=$3 place
    shift 3
    [ -f "fuzz_targets/$target.rs" ] || { echo "$0: there is no target $target" >&2; exit 2; }
    place=$(inputs "$target")
    # The versions that the workspace has.
    [ -f Cargo.lock ] || cp "$root/Cargo.lock" .
    # With a target of its own, build scripts are left without these flags.
    RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 ${FUZZ_RUSTFLAGS:-}" \
        cargo build --quiet --release --bin "$target" --target "$triple"
    "$CARGO_TARGET_DIR/$triple/release/$target" "$place/corpus" "$seeds" -max_total_time="$seconds" \
        -artifact_prefix="$place/found/" "$@"
}
