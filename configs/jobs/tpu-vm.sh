#!/usr/bin/env bash
# A training job on a Cloud TPU VM slice: tpu-vm.sh NAME ZONE RECIPE OUT. The same command starts on all hosts, and JAX
# finds the others through the metadata server. RECIPE, OUT and the data lie on a disk or bucket that all hosts have
# mounted; `specexit[tpu]` is installed on each. Run it again after a preemption: the run goes on.
set -eu
name=$1 zone=$2 recipe=$3 out=$4

gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="specexit train '$recipe' out='$out'"
