#!/usr/bin/env bash
# One training run on the nodes of a Slurm job: sbatch examples/cluster/slurm.sh run.yaml [key=value …]
# The folder that it is submitted from, its .venv and the run folder must be on a shared file system.
#SBATCH --job-name=agent-r1
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

config=${1:?give a configuration: sbatch examples/cluster/slurm.sh run.yaml}
shift
bin=${AGENT_R1_BIN:-$SLURM_SUBMIT_DIR/.venv/bin}
port=${AGENT_R1_RAY_PORT:-6379}
gpus=${SLURM_GPUS_ON_NODE:?ask for GPUs: --gpus-per-node}
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts[0]:?scontrol names no host of this job}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | cut -d ' ' -f 1)

# Workers of Ray have the lowest priority otherwise.
export RAY_worker_niceness=0
ray_on() { # NODES HOSTS WORDS…: Ray in the foreground, for as long as the job lasts
    srun --overlap --nodes="$1" --ntasks="$1" --nodelist="$2" "$bin/ray" start --block \
        --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$gpus" "${@:3}" &
}

ray_on 1 "$head" --head --node-ip-address="$address" --port="$port"
if ((SLURM_JOB_NUM_NODES > 1)); then
    rest=$(IFS=, && echo "${hosts[*]:1}")
    sleep "${AGENT_R1_HEAD_SECONDS:-20}" # until the head listens
    ray_on $((SLURM_JOB_NUM_NODES - 1)) "$rest" --address="$address:$port"
fi

settings=(ray.address="$address:$port" trainer.nnodes="$SLURM_JOB_NUM_NODES"
    trainer.n_gpus_per_node="$gpus" "$@")
# Waits until all nodes have joined, and says what is wrong with them.
for _ in {1..30}; do
    "$bin/agent-r1" doctor --config "$config" "${settings[@]}" && break
    sleep 10
done

"$bin/agent-r1" train --config "$config" "${settings[@]}" &
training=$!
# Slurm warns five minutes before the limit: the update under way is finished and saved.
trap 'kill -TERM "$training"' TERM
code=0
wait "$training" || code=$?
if ((code > 128)); then # wait was interrupted by the warning, or the run was
    code=0
    wait "$training" || code=$?
    ((code != 130)) || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
