#!/bin/sh
# Runs the test programs of one kind of machine and writes what they said to the third disk, as a tar archive.
# Lines that begin with `ilot:` are for the host to read.
kind=$1
# The kernel's own words would come in between.
dmesg -n 1
results=/ilot/results
mkdir -p "$results"
for module in overlay veth bridge loop; do modprobe -q "$module"; done
# Huge pages to be limited; a host that has none would make its tests skip.
echo 8 >/proc/sys/vm/nr_hugepages
export HOME=/root LC_ALL=C.UTF-8 ILOT_LIBEXEC=/ilot/libexec
export ILOT_CONFORMANCE_RESULTS="$results/conformance" ILOT_TEST_SKIPS="$results/skips"
read -r filter </ilot/filter
# Another runtime to try, by its name in the machine.
read -r RUNTIME </ilot/runtime
if [ -n "$RUNTIME" ]; then export RUNTIME; else unset RUNTIME; fi
echo "ilot: up after $(cut -d ' ' -f 1 /proc/uptime) s: Linux $(uname -r), $kind"
for program in /ilot/"$kind"/*; do
  [ -x "$program" ] || continue
  name=${program##*/}
  status=0
  # shellcheck disable=SC2086 # The filter is a list of words.
  timeout -k 5 300 "$program" --test-threads=2 --show-output $filter >"$results/$name.out" 2>&1 || status=$?
  echo "$status" >"$results/$name.status"
  echo "ilot: $name: $(sed -n 's/^test result: //p' "$results/$name.out" | tail -n 1) (status $status)"
done
dmesg >"$results/dmesg"
tar -C /ilot -cf /dev/vdc results && sync
echo 'ilot: done'
# Whatever process 1 is: nothing here is worth a shutdown in order.
echo o >/proc/sysrq-trigger
sleep 60
