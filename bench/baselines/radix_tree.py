"""NVIDIA Dynamo's `RadixTree` (wheel ai-dynamo-runtime) on the workload of `npm run bench -- prefix-index`.

Conversation c has `--length` blocks and is held by workers (7c + k) mod workers, k < copies; its first `--shared` blocks are the same for all.
Prints one JSON object. Events are JSON bytes, made before the clock starts, as the tree's Python interface takes them.
"""

import argparse
import json
import resource
import time

from dynamo._core import RadixTree

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--conversations", type=int, required=True)
parser.add_argument("--length", type=int, required=True)
parser.add_argument("--shared", type=int, required=True)
parser.add_argument("--copies", type=int, required=True)
parser.add_argument("--workers", type=int, required=True)
parser.add_argument("--batch", type=int, required=True)
parser.add_argument("--matches", type=int, required=True)
args = parser.parse_args()
MASK = (1 << 63) - 1


def block(conversation: int, index: int) -> int:
    """Stands for the hash of a block's tokens; the sequence hash is the same number, which is as unique."""
    owner = 0 if index < args.shared else conversation + 1
    return ((owner * 1_000_003 + index) * 0x9E3779B97F4A7C15) & MASK


def rss_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


tree = RadixTree()
event_id = 0
stored = 0
apply_s = 0.0
before = rss_bytes()
for conversation in range(args.conversations):
    hashes = [block(conversation, index) for index in range(args.length)]
    for copy in range(args.copies):
        worker = (conversation * 7 + copy) % args.workers
        events = []
        for start in range(0, args.length, args.batch):
            blocks = [{"block_hash": h, "tokens_hash": h} for h in hashes[start : start + args.batch]]
            parent = hashes[start - 1] if start else None
            event_id += 1
            data = {"stored": {"parent_hash": parent, "blocks": blocks}}
            events.append(json.dumps({"event_id": event_id, "data": data}).encode())
            stored += len(blocks)
        begin = time.perf_counter()
        for event in events:
            tree.apply_event(worker, event)
        apply_s += time.perf_counter() - begin
size = rss_bytes() - before

times = []
for number in range(args.matches):
    conversation = (number * 7919) % args.conversations
    prompt = [block(conversation, index) for index in range(args.length)]
    begin = time.perf_counter()
    scores = tree.find_matches(prompt)
    times.append((time.perf_counter() - begin) * 1e3)
    expected = {((conversation * 7 + copy) % args.workers, 0) for copy in range(args.copies)}
    full = {worker for worker, score in scores.scores.items() if score == args.length}
    assert full == expected, (full, expected)
times.sort()
print(
    json.dumps(
        {
            "storedPerSecond": stored / apply_s,
            "matchP50Ms": times[len(times) // 2],
            "matchP99Ms": times[len(times) * 99 // 100],
            "bytesPerHeldBlock": size / stored,
        }
    )
)
