#!/usr/bin/env bash
# A training job on a Cloud TPU VM slice: tpu-vm.sh NAME ZONE RECIPE OUT. The same command starts on all hosts, and JAX
# finds the others through the metadata server. `pip install '.[tpu]'` was done on each, in a checkout; where that was into a
# virtual environment, of which a shell that ssh starts knows nothing, SPECEXIT is the whole path of the command. RECIPE (a
# file, or a name in configs/recipes), OUT and the data lie on a disk or bucket that all hosts have mounted, or at gs://...,
# WORKDIR is where relative paths in the recipe start: by default OUT's parent, the home folder where OUT is gs://...
#
# The run does not hang on this connection: on each host it is a process of its own, which adds to
# ~/specexit-train.log. Run this again to look at it; where it has ended, after a preemption for one, it goes on. Exits
# with 0 once the run is finished, with 78 where a NaN has stopped it, which would only come again; nothing is started
# again by itself. While a run with another OUT is on the slice, none is started, and the exit code is 2.
set -eu
[ $# = 4 ] || { echo "usage: tpu-vm.sh NAME ZONE RECIPE OUT; other keys go into a RECIPE of your own, found $# words" >&2; exit 2; }
name=$1 zone=$2 recipe=$3 out=$4 specexit=${SPECEXIT:-specexit}
case $out in
  gs://*) workdir=${WORKDIR:-.} ;;
  /*) workdir=${WORKDIR:-$(dirname "$out")} ;;
  *) echo "OUT is $out, expected an absolute path, as ssh starts in the home folder, or gs://..." >&2; exit 2 ;;
esac
cache=${JAX_COMPILATION_CACHE_DIR:-$(dirname "$out")/compiled} # a restart need not compile again

# As in jobset.yaml, which says where they are from.
flags="--xla_tpu_enable_data_parallel_all_reduce_opt=true --xla_tpu_data_parallel_opt_different_sized_ops=true \
--xla_tpu_enable_async_collective_fusion=true --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true \
--xla_tpu_enable_async_collective_fusion_multiple_steps=true --xla_tpu_overlap_compute_collective_tc=true \
--xla_enable_async_all_gather=true"

ssh() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" "$@"; }
q() { printf %q "$1"; } # a word as the shell there reads it again, whatever quotes or spaces are in it

ssh --worker=all --command="
  cd $(q "$workdir") || exit 2
  case \$(tr '\0' ' ' 2>/dev/null </proc/\$(cat ~/specexit-train.pid 2>/dev/null)/cmdline) in
    *'specexit train '*' out='$(q "$out")' ') ;; # it goes on
    *'specexit train '*)
      echo \"\$(hostname)\": trains with another OUT than $(q "$out"): look at that run, or end it >&2; exit 2 ;;
    *) # after a reboot the number may be another process's
      export LIBTPU_INIT_ARGS='$flags' JAX_COMPILATION_CACHE_DIR=$(q "$cache")
      setsid nohup $(q "$specexit") train $(q "$recipe") out=$(q "$out") >>~/specexit-train.log 2>&1 </dev/null &
      echo \$! >~/specexit-train.pid ;;
  esac"
ssh --worker=0 --command="tail -n +1 --pid=\$(cat ~/specexit-train.pid) -F ~/specexit-train.log; $(q "$specexit") status run=$(q "$out")"
