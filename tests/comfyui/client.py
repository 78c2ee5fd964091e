"""Talks to a ComfyUI server over HTTP, as any program that uses its API does."""

import io
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass

import numpy as np
from PIL import Image


class Unreachable(ConnectionError):
    """No server answers."""


class Refused(Exception):
    """The server did not take the graph, or a node failed; the text is one sentence."""


class Interrupted(Exception):
    """The run was cancelled."""


@dataclass(frozen=True)
class Result:
    """A finished run: its pictures by node id, uint8 [N, height, width, 3], and the server's own time in seconds."""

    pictures: dict[str, np.ndarray]
    seconds: float


class Client:
    def __init__(self, address: str, pid: int | None = None):
        self.address = address
        self.pid = pid  # of the server, where it is a process of ours

    def request(self, path: str, body: dict | None = None, **query) -> bytes:
        """The answer to a GET, or to a POST if there is a body. Raises Unreachable or Refused."""
        url = f"{self.address}/{path}" + ("?" + urllib.parse.urlencode(query) if query else "")
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(refusal(error.read())) from None
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            raise Unreachable(f"No ComfyUI answers at {self.address}: {error}") from None

    def system_stats(self) -> dict:
        return json.loads(self.request("system_stats"))

    def object_info(self, node: str = "") -> dict:
        """The schemas of all nodes, or of one; empty if there is no such node."""
        return json.loads(self.request(f"object_info/{node}" if node else "object_info"))

    def queue(self, prompt: dict) -> str:
        """Queue a graph in the API form; its id. Raises Refused if the server finds it invalid."""
        return json.loads(self.request("prompt", {"prompt": prompt}))["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 600) -> Result:
        """The result of a queued graph. Raises Refused if a node failed, Interrupted, or TimeoutError."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry = json.loads(self.request(f"history/{prompt_id}")).get(prompt_id)
            if entry and entry["status"]["completed"]:
                return Result(self.pictures(entry["outputs"]), seconds_of(entry["status"]["messages"]))
            if entry:
                raise failure(entry["status"]["messages"])
            time.sleep(0.02)
        raise TimeoutError(f"The graph {prompt_id} did not end within {timeout:g} s.")

    def run(self, prompt: dict, timeout: float = 600) -> Result:
        """Queue a graph and wait for its result."""
        return self.wait(self.queue(prompt), timeout)

    def interrupt(self) -> None:
        self.request("interrupt", {})

    def pictures(self, outputs: dict) -> dict[str, np.ndarray]:
        """The pictures that each node saved or showed."""
        return {
            node: np.stack([self.picture(image) for image in output["images"]])
            for node, output in outputs.items()
            if output.get("images")
        }

    def picture(self, image: dict) -> np.ndarray:
        content = self.request("view", filename=image["filename"], subfolder=image["subfolder"], type=image["type"])
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def refusal(body: bytes) -> str:
    """One sentence for each thing that the server found wrong, nodes named."""
    try:
        answer = json.loads(body)
        found = [
            f"node {node} ({errors['class_type']}): {error['message']}: {error['details']}"
            for node, errors in answer.get("node_errors", {}).items()
            for error in errors["errors"]
        ]
        return "; ".join(found) or answer["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:500] or "an empty answer"


def failure(messages: list) -> Exception:
    by_kind = dict(messages)
    if "execution_error" in by_kind:
        error = by_kind["execution_error"]
        return Refused(f"node {error['node_id']} ({error['node_type']}): {error['exception_message'].strip()}")
    return Interrupted("The run was cancelled.")


def seconds_of(messages: list) -> float:
    by_kind = dict(messages)
    return (by_kind["execution_success"]["timestamp"] - by_kind["execution_start"]["timestamp"]) / 1000
