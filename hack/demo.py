"""`make demo`, second half: from a dataset to a tuned chat answer, through kubectl and the OpenAI API alone.

The first half (hack/stack.sh) brings up cluster, S3 server and operator. This one can be interrupted and started again
at any time: it takes up the job that is there.
"""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("FINETUNE_CACHE", Path.home() / ".cache/finetune-operator"))
REPORT = CACHE / "demo/report.html"
MODEL = CACHE / "models/SmolLM2-135M-Instruct"
CLINIC = ROOT / "examples/clinic"
JOB = ROOT / "manifests/samples/clinic-demo.yaml"
NAMESPACE = "demo"
S3 = "http://127.0.0.1:17070"
PORT = 18000
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo-secret-key"}
LIMIT = 1800  # seconds
ENOUGH = 2  # of the three answers: a model this small may get one paraphrase wrong


def say(text: str) -> None:
    print(f"\033[1m== {text}\033[0m", flush=True)


def kubectl(*args: str, text: str | None = None) -> str:
    command = [str(ROOT / "tests/devcluster/kubectl"), "--namespace", NAMESPACE, *args]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: kubectl {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout


def s3_client() -> Any:
    return boto3.client(
        "s3", endpoint_url=S3, region_name="us-east-1", aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"], config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )  # fmt: skip


def upload() -> None:
    """Put model and data where the job reads them; what is there already stays."""
    client = s3_client()
    buckets = {b["Name"] for b in client.list_buckets()["Buckets"]}
    for bucket in ("models", "datasets", "finetune"):
        if bucket not in buckets:
            client.create_bucket(Bucket=bucket)
    present = {o["Key"]: o["Size"] for o in client.list_objects_v2(Bucket="models", Prefix=MODEL.name).get("Contents", [])}
    for file in sorted(MODEL.iterdir()):
        if present.get(f"{MODEL.name}/{file.name}") != file.stat().st_size:
            client.upload_file(str(file), "models", f"{MODEL.name}/{file.name}")
    client.upload_file(str(CLINIC / "support.jsonl"), "datasets", "clinic/support.jsonl")


def prepare_namespace() -> None:
    """The namespace, as restricted as a careful cluster has it, and the Secret that the job names."""
    manifests: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3", "namespace": NAMESPACE}, "stringData": CREDENTIALS},
    ]
    kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))


def watch() -> dict[str, Any]:
    """One live line until the job has ended; a line of its own for each phase."""
    live, phase, status = sys.stdout.isatty(), "", dict[str, Any]()
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        status = json.loads(kubectl("get", "finetunejob", "clinic", "-o", "json")).get("status", {})
        progress, display = status.get("progress", {}), status.get("display", {})
        line = (
            f"{status.get('phase', ''):<10} step {display.get('step', '-'):<8} loss {progress.get('loss', '-'):<8} "
            f"ETA {display.get('eta', '-'):<6} {status.get('reason', '')}"
        )
        if live:
            print(f"\r\033[K{line}", end="", flush=True)
        elif status.get("phase") != phase:
            print(line, flush=True)
        phase = status.get("phase", "")
        if phase in ("Succeeded", "Failed"):
            break
        time.sleep(1)
    if live:
        print()
    if status.get("phase") != "Succeeded":
        where = f"look at: tests/devcluster/kubectl -n {NAMESPACE} describe finetunejob clinic"
        sys.exit(f"error: the job is {status.get('phase')}: {status.get('reason')}: {status.get('message')}\n  {where}")
    return status


def fetch_report(status: dict[str, Any]) -> None:
    """The job's report page, to be opened in a browser."""
    bucket, _, key = status["run"]["report"].removeprefix("s3://").partition("/")
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    s3_client().download_file(bucket, key, str(REPORT))


def ask(model: str, question: str) -> str:
    body = {"model": model, "temperature": 0, "max_tokens": 64, "messages": [{"role": "user", "content": question}]}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310  our own endpoint
        return str(json.load(answer)["choices"][0]["message"]["content"]).strip()


def compare() -> int:
    """The same questions to the base model and to the tuned one. How many tuned answers hold what they should."""
    good = 0
    for item in json.loads((CLINIC / "questions.json").read_text()):
        tuned = ask("support", item["question"])
        right = all(word.lower() in tuned.lower() for word in item["expect"])
        good += right
        print(f"\n  Question: {item['question']}\n  Base:     {ask('base', item['question'])}\n  Tuned:    {tuned}{'' if right else '   (not as trained)'}")
    print()
    return good


def main() -> None:
    started = time.monotonic()
    say("model and data into S3")
    upload()
    say("kubectl apply -f manifests/samples/clinic-demo.yaml")
    prepare_namespace()
    kubectl("apply", "-f", str(JOB))
    fetch_report(watch())
    subprocess.run([str(ROOT / "tests/devcluster/forward"), str(PORT), f"{NAMESPACE}/support:80"], check=True, stdout=subprocess.DEVNULL)
    say("the same questions to the base model and to the tuned one")
    good = compare()
    say("kubectl get finetunejobs,modelendpoints")
    print(kubectl("get", "finetunejobs,modelendpoints"))
    print(
        f"""Next:
  export KUBECONFIG=$(make -s kubeconfig)
  kubectl -n {NAMESPACE} describe finetunejob clinic
  kubectl explain finetunejob.spec.training --recursive
  curl -s http://127.0.0.1:{PORT}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "support", "messages": [{{"role": "user", "content": "When are you open?"}}]}}'
  open {REPORT}   # curves, data, answers before and after
  make demo-down        # ends the cluster and everything in it
"""
    )
    seconds = round(time.monotonic() - started)
    if good < ENOUGH:
        sys.exit(f"error: only {good} of the tuned answers hold what they were trained to say")
    print(f"demo phase=Succeeded seconds={seconds} endpoint=http://127.0.0.1:{PORT}/v1")


if __name__ == "__main__":
    main()
