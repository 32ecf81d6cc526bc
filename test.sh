#!/usr/bin/env bash
# Everything that is checked: formatting, lints, the build, unit and integration tests against the real kernel,
# documents, licences, spelling, scripts. Installs what is missing for it with apt-get.
#
#   ./test.sh            all of it
#   ./test.sh tests      only build and tests
#
# Needs root for the tests that make namespaces, bridges and cgroups; as an ordinary user it asks for it with sudo.
set -euo pipefail
cd "$(dirname "$0")"
export LC_ALL=C.UTF-8 CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
# Tests look for what was built.
export CARGO_TARGET_DIR=$target
work=$target/test
mkdir -p "$work"
steps=()
failed=()

# step NAME COMMAND…: runs it, keeps its time; a failure is remembered and the next step runs all the same.
step() {
  local name=$1 start status=0
  shift
  printf '\n==> %s\n' "$name"
  start=$(date +%s)
  "$@" || status=$?
  if [ "$status" = 0 ]; then
    steps+=("$(printf '%5ss  ok      %s' "$(($(date +%s) - start))" "$name")")
  else
    steps+=("$(printf '%5ss  FAILED  %s' "$(($(date +%s) - start))" "$name")")
    failed+=("$name")
  fi
}

skip() {
  steps+=("$(printf '     -  skipped %s: %s' "$1" "$2")")
  printf '\n==> %s: skipped: %s\n' "$1" "$2"
}

packages() {
  need_packages ca-certificates gcc libc6-dev nftables iproute2 iputils-ping busybox-static mmdebstrap \
    debian-archive-keyring shellcheck python3-venv curl
  # Engines that the tests drive. Who has one, Docker's containerd for example, keeps it.
  command -v podman >/dev/null || need_packages podman conmon
  need_packages uidmap procps
  command -v skopeo >/dev/null || need_packages skopeo
  command -v ctr >/dev/null || need_packages containerd
  command -v buildah >/dev/null || need_packages buildah
  # Not every distribution has it; where it does not know the kernel, the tests with it say so.
  if ! command -v criu >/dev/null && apt-cache show criu >/dev/null 2>&1; then need_packages criu iptables; fi
  command -v umoci >/dev/null || need_packages umoci
  command -v rpmbuild >/dev/null || need_packages rpm
  # A machine with the layout of control groups that this host does not have. Without it that step is skipped.
  if needs_machine && ! command -v qemu-system-x86_64 >/dev/null; then
    need_packages qemu-system-x86 || true
  fi
}

# Whether the tests of cgroup v2 need a virtual machine, and this host can be expected to run it.
needs_machine() {
  [ ! -e /sys/fs/cgroup/cgroup.controllers ] && [ "$(uname -m)" = x86_64 ]
}

# Tests that the host's control groups cannot tell the truth about.
cgroup2() {
  if ! needs_machine; then
    skip 'cgroup v2 in a virtual machine' 'the tests above ran on cgroup v2, or the processor is another than x86_64'
  elif ! command -v qemu-system-x86_64 >/dev/null; then
    skip 'cgroup v2 in a virtual machine' 'QEMU is not installed (package qemu-system-x86)'
  else
    step 'cgroup v2 in a virtual machine' cargo xtask test --cgroup2
  fi
}

# Tools of the checks that no distribution has: kept under target/, fetched once.
tools() {
  if [ ! -x "$target/tools/venv/bin/typos" ]; then
    python3 -m venv "$target/tools/venv" && "$target/tools/venv/bin/pip" install --quiet --disable-pip-version-check typos
  fi
  if ! PATH=$PATH:$target/tools/bin command -v cargo-deny >/dev/null; then
    # Unoptimised: it builds in a minute and runs for a second. Outside of the project its Cargo.toml has no say.
    (cd / && cargo install --quiet --locked --debug --root "$target/tools" --target-dir "$target/tools/build" cargo-deny) &&
      rm -rf "$target/tools/build"
  fi
}

# formatter_and_linter: parts of Rust that a small installation lacks.
formatter_and_linter() {
  if cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1; then
    return 0
  fi
  command -v rustup >/dev/null && rustup component add rustfmt clippy
}

lints() { cargo clippy --workspace --all-targets --quiet -- -D warnings; }

rustdoc() { RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --document-private-items --quiet; }

# Unit tests, and the whole program against the kernel. Test programs run as root.
run_tests() {
  export ILOT_BIN=$target/dist/bin/ilot ILOT_LIBEXEC=$target/dist/libexec/ilot ILOT_TEST_SKIPS=$work/skips
  rm -f "$ILOT_TEST_SKIPS"
  local triple
  if [ "$(id -u)" != 0 ]; then
    triple=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    export "CARGO_TARGET_${triple}_RUNNER=sudo -E"
  fi
  if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace 2>&1 | tee "$work/tests.log"
  else
    echo "cargo-nextest is not installed: running 'cargo test' instead (slower: one test program after the other)"
    cargo test --workspace --no-fail-fast --lib --bins --tests 2>&1 | tee "$work/tests.log"
  fi
}

doc_tests() { cargo test --workspace --doc --quiet; }

licences() {
  PATH=$PATH:$target/tools/bin cargo deny --log-level error check bans licenses sources
}

# Known weaknesses of dependencies: the list is on the network.
advisories() {
  local status=0
  PATH=$PATH:$target/tools/bin timeout 120 cargo deny --log-level error check advisories >"$work/advisories.log" 2>&1 || status=$?
  if [ "$status" != 0 ] && grep -q 'failed to fetch\|failed to clone\|unable to fetch\|failed to acquire' "$work/advisories.log"; then
    skip 'known weaknesses of dependencies' 'the database of advisories cannot be reached from here'
  else
    step 'known weaknesses of dependencies' show_log "$status" "$work/advisories.log"
  fi
}

show_log() {
  cat "$2"
  return "$1"
}

spelling() { "$target/tools/venv/bin/typos"; }

scripts() { shellcheck -x ./*.sh scripts/*.sh crates/xtask/guest/*.sh .ci/run; }

summary() {
  if [ -s "$work/skips" ]; then
    printf '\nTests that this host cannot run:\n'
    sort "$work/skips" | sed 's/^/  /'
  fi
  if grep -aq '^ *FLAKY ' "$work/tests.log"; then
    printf '\nTests that failed once and passed at their second try (a race: to be looked into):\n'
    grep -a '^ *FLAKY ' "$work/tests.log" | sort -u
  fi
  printf '\nSteps:\n'
  printf '  %s\n' "${steps[@]}"
  printf '\n'
  # What the test runner said in the end, here as the last words too.
  grep -a '^test .* FAILED$' "$work/tests.log" || true
  grep -a 'Summary \[\|tests run:\|^test result:' "$work/tests.log" | tail -n 5 || true
  if [ "${#failed[@]}" != 0 ]; then
    printf 'FAILED: %s\n' "$(join_with ', ' "${failed[@]}")"
    return 1
  fi
}

need_rust
all=true
[ "${1:-}" != tests ] || all=false

step 'packages that the tests need' packages
if $all; then
  step 'tools of the checks' tools
  if formatter_and_linter; then
    step 'formatting' cargo fmt --all --check
    step 'lints' lints
  else
    skip 'formatting and lints' 'this Rust has no rustfmt and clippy (packages rustfmt and rust-clippy)'
  fi
fi
step 'build' cargo xtask build
step 'tests' run_tests
cgroup2
if $all; then
  step 'examples in the documentation of the code' doc_tests
  step 'documentation of the code' rustdoc
  step 'documents: links, anchors, indexes' cargo xtask check-docs
  step 'licences and sources of dependencies' licences
  advisories
  step 'spelling' spelling
  step 'scripts' scripts
fi
summary
