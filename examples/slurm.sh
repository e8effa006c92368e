#!/bin/bash
#SBATCH --job-name=scvae
#SBATCH --nodes=1                  # more: --nodes=2; the minibatch is shared by all GPUs of all
#SBATCH --ntasks-per-node=1        # torchrun starts the processes, one a GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=400G                 # every process holds the counts, or --memory of them from disk
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120          # two minutes before the end: write the checkpoint, and end
#SBATCH --requeue                  # a job that was put back goes on from the checkpoint
#SBATCH --open-mode=append
#SBATCH --output=scvae-%j.log
#
#   sbatch examples/slurm.sh atlas.h5ad donor
#
# trains on the cells of atlas.h5ad with their batches in the column "donor", and writes, beside it,
# atlas.scvae, atlas-embedded.h5ad and atlas-denoised.zarr. If the job ends before that, the same
# command goes on from where it was.

set -euo pipefail
data=${1:?"usage: sbatch slurm.sh atlas.h5ad donor"}
batch=${2:?"usage: sbatch slurm.sh atlas.h5ad donor"}
name=${data%.h5ad}

processes=${SLURM_GPUS_ON_NODE:-2}  # without GPUs: so many on the CPU
export OMP_NUM_THREADS=$((${SLURM_CPUS_PER_TASK:-2} / processes))
read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

everywhere() {
    srun torchrun \
        --nnodes="$SLURM_NNODES" --nproc-per-node="$processes" \
        --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:29500" \
        --max-restarts=3 \
        -m scvae "$@"
}

if [ ! -e "$name-embedded.h5ad" ]; then
    # 128 cells of every minibatch for each process: with few more, they would wait for each other.
    everywhere fit "$data" -o "$name-embedded.h5ad" --batch "$batch" --model "$name.scvae" \
        --batch-size $((128 * processes * SLURM_NNODES)) --checkpoint "$name-checkpoint"
fi
if [ ! -e "$name-denoised.zarr" ]; then
    everywhere normalize "$name.scvae" "$data" -o "$name-denoised.zarr" --dtype float16
fi
