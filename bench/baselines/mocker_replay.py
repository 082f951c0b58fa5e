"""NVIDIA Dynamo's own simulator (wheel ai-dynamo-runtime): replays a trace in Mooncake's format on mock workers behind its KV router.

Prints one JSON object: wall and CPU seconds of the replay, and its summary.
"""

import argparse
import json
import time

from dynamo._core import run_mocker_trace_replay

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--trace", required=True)
parser.add_argument("--workers", type=int, required=True)
args = parser.parse_args()
wall, cpu = time.perf_counter(), time.process_time()
result = run_mocker_trace_replay([args.trace], num_workers=args.workers, router_mode="kv_router", trace_block_size=512)
times = {"wallS": time.perf_counter() - wall, "cpuS": time.process_time() - cpu}
print(json.dumps({**times, "summary": result.summary}, default=str))
