#!/usr/bin/env bash
# Builds ilot and shows it at work: three islands, what one may see of another, and what not.
#
#   ./try.sh           install what is missing (apt-get), build, bring the example up, try its walls
#   ./try.sh --down    remove the example and everything that it made
#
# Needs Rust and root; as an ordinary user it builds as you and asks for root with sudo where it must. May be run again.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

example=examples/sandbox-isolation
ilot=${CARGO_TARGET_DIR:-$PWD/target}/dist/bin/ilot
store=${ILOT_ROOT:-/var/lib/ilot}
mark=${CARGO_TARGET_DIR:-$PWD/target}/try-made-the-store
missed=0

title() { printf '\n==> %s\n' "$*"; }

run() {
  printf '$ ilot %s\n' "$*"
  as_root "$ilot" "$@"
}

# inside MACHINE COMMAND…: quietly; the exit status tells.
inside() { as_root "$ilot" exec "$1" -- "${@:2}" 2>/dev/null; }

# answers MACHINE WHAT COMMAND…: must succeed, within seconds (a server may be starting); what it printed is shown.
answers() {
  local machine=$1 what=$2 said try
  shift 2
  for try in $(seq 20); do
    if said=$(inside "$machine" "$@"); then
      printf '  passes   %-18s -> %-30s %s\n' "$machine" "$what" "$(head -n 1 <<<"$said")"
      return
    fi
    [ "$try" = 20 ] || sleep 0.2
  done
  wrong "$machine" "$what" 'should answer and does not'
}

# silent MACHINE WHAT COMMAND…: must run and fail.
silent() {
  local machine=$1 what=$2 status=0
  shift 2
  inside "$machine" "$@" >/dev/null || status=$?
  case $status in
    0) wrong "$machine" "$what" 'answers and should not' ;;
    12[5-7] | 139) wrong "$machine" "$what" "could not be tried (exit status $status)" ;;
    *) printf '  stopped  %-18s -> %s\n' "$machine" "$what" ;;
  esac
}

wrong() {
  printf '  WRONG    %-18s -> %-30s %s\n' "$@"
  missed=1
}

# address MACHINE: as `ilot check` gives it.
address() {
  as_root "$ilot" check --json -f "$example" | tr -d ' \n' | sed "s/.*\"$1\":{[^{}]*\"ip\":\"\([0-9.]*\)\".*/\1/"
}

down() {
  [ -x "$ilot" ] || { echo "nothing to remove: $ilot was not built"; return 0; }
  run destroy -f "$example" --yes
  # A store that was not there before this script goes too, unless somebody uses it by now.
  if [ -e "$mark" ] && as_root rmdir "$store/projects" "$store/machines" 2>/dev/null; then
    as_root rm -rf "$store" "${ILOT_RUN:-/run/ilot}"
    rm -f "$mark"
    echo "removed $store"
  fi
}

walls() {
  local box viewer
  box=$(address sandbox-box) viewer=$(address desk-viewer)
  # `timeout`, not `wget -T`: that crashes in the busybox of Debian 12.
  answers desk-viewer "sandbox-box, port 8080" timeout 5 wget -q -O - "http://$box:8080/"
  silent desk-viewer "sandbox-box, ping" ping -c 1 -W 1 "$box"
  silent sandbox-box "desk-viewer, ping" ping -c 1 -W 1 "$viewer"
  silent sandbox-box "this host, ping" ping -c 1 -W 1 "${box%.*}.254"
  silent throwaway-browser "sandbox-box, port 8080" timeout 1 wget -q -O - "http://$box:8080/"
  outside
}

# The next router is the nearest thing outside; not every one answers.
outside() {
  local router
  router=$(ip -4 route show default 2>/dev/null | sed -n 's/.* via \([0-9.]*\).*/\1/p' | head -n 1)
  if [ -n "$router" ] && ping -c 1 -W 1 "$router" >/dev/null 2>&1; then
    answers throwaway-browser "outside (your router), ping" sh -c "ping -c 1 -W 2 $router >/dev/null && echo answers"
    silent sandbox-box "outside (your router), ping" ping -c 1 -W 1 "$router"
  else
    echo "  (the next router answers no ping, not even ours: the way out was not tried)"
  fi
}

who_is_root() {
  local inside outside pid
  inside=$(inside sandbox-box id -u)
  pid=$(as_root "$ilot" inspect --json sandbox-box | tr -d ' \n' | sed -n 's/.*"pid":\([0-9]*\).*/\1/p')
  outside=$(as_root stat -c %u "/proc/$pid")
  printf '  in sandbox-box you are user %s; on this host its processes belong to user %s, which is nobody\n' \
    "$inside" "$outside"
}

case ${1:-} in
  '') ;;
  --down) down; exit ;;
  *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

need_rust
title 'What is needed'
need_packages ca-certificates gcc libc6-dev nftables iproute2 iputils-ping busybox-static mmdebstrap \
  debian-archive-keyring

title 'Building (a few minutes the first time)'
cargo xtask build
echo "built: ${ilot#"$PWD"/}"

title 'What this host offers'
# What is missing, and how to get it. What the example cannot do without stops the next step.
echo '$ ilot doctor   (here without what is fine)'
as_root "$ilot" doctor | grep -v '^  ok ' || true

title "Bringing up $example"
as_root test -e "$store" || touch "$mark"
run apply -f "$example" --yes
run status -f "$example"

title 'Trying the walls, from inside'
walls
who_is_root

title 'Go on'
sudo='' ; [ "$(id -u)" = 0 ] || sudo='sudo '
hint() { printf '  %-62s %s\n' "$1" "$2"; }
hint "$sudo${ilot#"$PWD"/} shell desk-viewer" 'a shell in a machine'
hint "$sudo${ilot#"$PWD"/} plan -f $example" 'what an edited file would change'
hint "$sudo${ilot#"$PWD"/} ps" 'what runs'
hint './try.sh --down' 'removes all of it'
echo '  The tour is in README.md.'
exit "$missed"
