"""Times Gloo's sums, which loraxs makes once a step, and fits a latency and a bandwidth to them (docs/processes.md).

    torchrun --nproc-per-node 2 scripts/reference/sums.py          # on several hosts: --nnodes, --rdzv-endpoint

Needs torch 2.11. Prints, for every number of processes up to those that were started, the shortest and the median time of a sum.
"""

import argparse
import statistics
import time

import torch
import torch.distributed as dist

SIZES = [4, 4 * 1024, 98_304, 1 << 20, 4 << 20, 16 << 20, 64 << 20]


def seconds(group, count, repeats):
    values = torch.ones(count)
    times = []
    for _ in range(repeats + 2):
        dist.barrier(group)
        start = time.perf_counter()
        dist.all_reduce(values, group=group)
        times.append(time.perf_counter() - start)
        values.fill_(1)
    return sorted(times[2:])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=50, help="sums of each size; a tenth as many from 16 MiB on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    rows = []
    for n in range(2, size + 1):
        group = dist.new_group(list(range(n)))
        if rank < n:
            for bytes_ in SIZES:
                times = seconds(group, bytes_ // 4, args.repeats if bytes_ < 16 << 20 else max(args.repeats // 10, 3))
                rows.append((n, bytes_, times[0], statistics.median(times)))
                if rank == 0:
                    print(f"{n} processes, {bytes_:>9} bytes: {1e3 * times[0]:9.3f} ms, median {1e3 * rows[-1][3]:9.3f} ms", flush=True)
        dist.barrier()
    if rank == 0:
        # t = 2 (n - 1) latency + 2 (n - 1) / n bytes / bandwidth, with weights that make errors relative.
        for name, column in (("shortest", 2), ("median", 3)):
            a = torch.tensor([[2 * (n - 1), 2 * (n - 1) / n * b] for n, b, *_ in rows], dtype=torch.float64)
            t = torch.tensor([row[column] for row in rows], dtype=torch.float64)
            latency, byte = torch.linalg.lstsq(a / t[:, None], torch.ones(len(rows), 1, dtype=torch.float64)).solution.flatten().tolist()
            print(f"{name} times: latency {1e6 * latency:.0f} us a hop, {1 / byte / 1e9 if byte > 0 else float('inf'):.2f} GB/s")
    dist.destroy_process_group()


main()
