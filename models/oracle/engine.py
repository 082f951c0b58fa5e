"""The engine, through `kvasir-sidecar generate`."""

import json
import pathlib
import subprocess
import tempfile

import numpy as np


class Engine:
    """One model under one setting. Each call is a process of its own, as nothing may carry over between comparisons."""

    def __init__(self, binary: pathlib.Path, model: pathlib.Path, kv_dtype: str = "f32", weights: str = "f32", kv_bytes: str = "256MiB"):
        self.command = [str(binary), "generate", "--model", str(model), "--kv-dtype", kv_dtype, "--kv-bytes", kv_bytes, "--weights", weights]

    def logits(self, tokens: list[int], chunk: int) -> np.ndarray:
        """`[tokens, vocab]`, the text being computed in chunks."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "logits.f32"
            ids = ",".join(map(str, tokens))
            self._run(["--tokens", ids, "--chunk", str(chunk), "--max-tokens", "1", "--logits-out", str(path)])
            return np.fromfile(path, dtype="<f4").reshape(len(tokens), -1)

    def greedy(self, prompts: list[list[int]], count: int, chunk: int) -> list[list[int]]:
        """The next `count` tokens of each prompt, all in one batch; prompt `i` starts `i` steps late, so that prefills and decodes mix."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "prompts.json"
            path.write_text(json.dumps(prompts))
            answer = self._run(["--batch", str(path), "--chunk", str(chunk), "--max-tokens", str(count)])
            return json.loads(answer)["outputs"]

    def _run(self, flags: list[str]) -> str:
        done = subprocess.run(self.command + flags, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(self.command)} ended with code {done.returncode}: {done.stderr.strip()[-2000:]}")
        return done.stdout
