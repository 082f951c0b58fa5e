"""NVIDIA Dynamo's own simulator (wheel ai-dynamo-runtime): replays a trace in Mooncake's format on mock workers behind its KV router.

Prints one JSON object: wall and CPU seconds of the replay, its summary, and with `--requests` TTFT, mean gap and tokens of each request.
"""

import argparse
import json
import tempfile
import time

from dynamo._core import run_mocker_trace_replay

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--trace", required=True)
parser.add_argument("--workers", type=int, default=0, help="for both phases")
parser.add_argument("--prefill", type=int, default=0)
parser.add_argument("--decode", type=int, default=0)
parser.add_argument("--speed", type=float, default=1.0)
parser.add_argument("--requests", action="store_true")
args = parser.parse_args()
if args.workers > 0:
    cluster = {"num_workers": args.workers}
else:
    cluster = {
        "prefill_engine_args": {"engine": {"worker_type": "prefill"}},
        "decode_engine_args": {"engine": {"worker_type": "decode"}},
        "num_prefill_workers": args.prefill,
        "num_decode_workers": args.decode,
    }
with tempfile.NamedTemporaryFile(suffix=".jsonl") as report:
    if args.requests:
        cluster["report_jsonl_path"] = report.name
    wall, cpu = time.perf_counter(), time.process_time()
    result = run_mocker_trace_replay(
        [args.trace], router_mode="kv_router", trace_block_size=512, arrival_speedup_ratio=args.speed, **cluster
    )
    times = {"wallS": time.perf_counter() - wall, "cpuS": time.process_time() - cpu}
    requests = []
    for line in open(report.name) if args.requests else []:
        row = json.loads(line)
        requests.append([row["ttft_ms"], row["itl_ms"] or 0, row["output_length"], row["reused_input_tokens"]])
print(json.dumps({**times, "summary": result.summary, "requests": requests}, default=str))
