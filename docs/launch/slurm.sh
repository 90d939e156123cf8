#!/usr/bin/env bash
# The reference run on 16 nodes of 8 H100s, by Slurm: sbatch docs/launch/slurm.sh
# What each line is for: docs/launch/README.md
#SBATCH --job-name=straits-37b
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%j.log
set -uo pipefail

config=${CONFIG:-configs/pretrain_37b.py}
workdir=${WORKDIR:-runs/straits-37b} # on a file system that all nodes see

export NCCL_IB_HCA=mlx5
export NCCL_SOCKET_IFNAME=bond0
export NCCL_DEBUG=WARN
export JAX_COMPILATION_CACHE_DIR=$workdir/compilation-cache

mkdir -p "$workdir"
if [[ ${SLURM_RESTART_COUNT:-0} == 0 ]]; then
  srun --kill-on-bad-exit=0 python -m train.preflight --storage "$workdir" || exit
fi

trap : TERM # where it comes to this shell as well, wait for the run to save
srun --kill-on-bad-exit=1 python -m train.main --config "$config" --workdir "$workdir" &
wait $! # returns at the signal, too
code=$?
if ((code > 128)); then # the signal ended the wait; srun has passed its own on
  wait $!
  code=$?
fi
if ((code == 75)); then # saved, and wants to be started again
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
