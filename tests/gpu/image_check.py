"""Prepare and 20 steps of training in the trainer's gpu image, which has no test tools. Without a GPU it trains on the CPU.

python3 -m tests.gpu.image_check     with VERSITYGW set; prints "1 passed"
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import Exit
from tests.runtime.support import CLINIC, DEFAULTS, ROOT, Server, Step, answers, free_port, wait_for


def main() -> None:
    """Run both steps against a real S3 server."""
    folder = Path(tempfile.mkdtemp())
    (folder / "s3").mkdir()
    server = Server(f"http://127.0.0.1:{free_port()}", "tester", "only-for-tests")
    gateway = subprocess.Popen(
        [os.environ["VERSITYGW"], "posix", folder / "s3"],
        env={
            "ROOT_ACCESS_KEY": server.access_key, "ROOT_SECRET_KEY": server.secret_key,
            "VGW_PORT": server.endpoint.removeprefix("http://"), "VGW_HEALTH": "/healthz",
        },
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for("the S3 server's start", lambda: answers(f"{server.endpoint}/healthz"))
        server.client().create_bucket(Bucket="check")
        sources = folder / "sources/pvc"
        command = [sys.executable, str(ROOT / "tests/fixtures/make_tiny_model.py"), str(sources / "models/tiny-qwen3"), "--corpus", str(CLINIC)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (sources / "data").mkdir()
        (sources / "data/train.jsonl").write_text("".join(CLINIC.read_text().splitlines(keepends=True)[:42]))
        config = JobConfig.model_validate(DEFAULTS | {"storage": {"uri": "s3://check/jobs", "endpoint": server.endpoint}})
        environment = {**server.environment, "FINETUNE_SOURCES": str(folder / "sources")}
        Step("prepare", config, folder / "prepare", environment).end(Exit.DONE)
        train = Step("train", config, folder / "train", environment).end(Exit.DONE).train
        if train is None or (train.step, train.total_steps) != (20, 20) or train.adapter is None:
            sys.exit(f"error: not trained to the end: {train}")
        print(f"20 steps, loss {train.loss:.3f}, evaluation loss {train.eval_loss:.3f}, adapter {train.adapter.manifest_sha256[:12]}")
        print("1 passed")
    finally:
        gateway.kill()
        gateway.wait()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
