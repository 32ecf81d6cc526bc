# shellcheck shell=bash
# Shared by try.sh and test.sh.

# as_root COMMAND…: as root, with sudo if need be.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    echo "this needs root: run it as root, or install sudo" >&2
    return 1
  fi
}

# need_packages NAME…: installs those that are not installed; nothing to do, nothing asked.
need_packages() {
  local name missing=() log
  if ! command -v apt-get >/dev/null; then
    echo "no apt-get here: make sure that these (or your distribution's names for them) are installed: $*" >&2
    return 0
  fi
  for name in "$@"; do
    # `install ok installed`, and nothing else, is installed.
    [ "$(dpkg-query -W -f '${Status}' "$name" 2>/dev/null)" = 'install ok installed' ] || missing+=("$name")
  done
  if [ "${#missing[@]}" = 0 ]; then
    echo "all there: $*"
    return 0
  fi
  echo "installing: ${missing[*]}"
  log=$(mktemp)
  if as_root apt-get update >"$log" 2>&1 &&
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
    rm -f "$log"
  else
    # Which server was asked is nobody's business in a log that is shared.
    tail -n 15 "$log" | sed -E 's#[a-z]+://[^ ]*#(mirror)#g' >&2
    rm -f "$log"
    echo "apt-get could not install: ${missing[*]}; install them by hand and try again" >&2
    return 1
  fi
}

# need_rust: cargo must be there; where it usually hides is looked at first.
need_rust() {
  if ! command -v cargo >/dev/null && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
  fi
  if ! command -v cargo >/dev/null; then
    echo "no Rust here (1.88 or newer): your distribution's packages or https://rustup.rs have it" >&2
    return 1
  fi
}

# join_with SEPARATOR WORD…
join_with() {
  local separator=$1 out=$2 word
  shift 2
  for word in "$@"; do out+=$separator$word; done
  printf '%s' "$out"
}
