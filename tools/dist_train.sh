#!/usr/bin/env bash
# Train on several GPUs: tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
#
# On several machines run it on each, with the same NNODES, MASTER_ADDR and
# PORT and with NODE_RANK = 0, 1, ... Without a GPU, GPUS is the number of
# processes.
set -euo pipefail

if (($# < 2)); then
    echo "usage: $0 CONFIG GPUS [arguments of tools/train.py]" >&2
    exit 2
fi
targets=("$1")
gpus=$2
shift 2

tools=$(dirname "$0")
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$tools/train.py" "${targets[@]}" --launcher pytorch "$@"
