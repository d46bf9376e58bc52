"""Checks of gate.py and action_benchmark.py: `python3 -m unittest discover .github/scripts`."""

import copy
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import action_benchmark

HERE = Path(__file__).resolve().parent
SAMPLE = HERE.parents[1] / "reports" / "loopback-smollm2-135m"


class ActionBenchmark(unittest.TestCase):
    def setUp(self):
        self.summary = json.loads((SAMPLE / "summary.json").read_text())

    def test_figures_go_where_their_direction_says(self):
        files = action_benchmark.convert(self.summary)
        smaller, bigger = files["smaller-is-better.json"], files["bigger-is-better.json"]
        split = self.summary["cases"][-1]["arms"][1]
        tokens = self.summary["cases"][-1]["prompt_tokens"]
        name = f"{tokens} prompt tokens, split bulk x1: "
        values = {row["name"]: row["value"] for row in smaller}
        self.assertEqual(values[name + "e2e_ms"], split["e2e_ms"]["median"])
        self.assertNotIn(name + "effective_gbps", values)
        values = {row["name"]: row["value"] for row in bigger}
        self.assertEqual(values[name + "effective_gbps"], split["effective_gbps"]["median"])
        # A single arm sends nothing: no row rather than a zero.
        self.assertFalse([n for n in values if "single" in n and "gbps" in n])

    def test_names_are_unique_and_rows_complete(self):
        for rows in action_benchmark.convert(self.summary).values():
            self.assertEqual(len({row["name"] for row in rows}), len(rows))
            for row in rows:
                self.assertEqual(set(row), {"name", "unit", "value", "range", "extra"})
                self.assertIsInstance(row["value"], (int, float))

    def test_lossy_arms_have_names_of_their_own(self):
        arm = copy.deepcopy(self.summary["cases"][0]["arms"][1])
        plain = action_benchmark.arm_name(arm)
        arm["wire_dtype"] = "int8"
        self.assertEqual(action_benchmark.arm_name(arm), f"{plain} int8")

    def test_a_wrong_or_broken_run_is_refused(self):
        for key, value in [("outputs", "differ"), ("status", "interrupted")]:
            with self.assertRaises(ValueError):
                action_benchmark.convert({**self.summary, key: value})


class Gate(unittest.TestCase):
    """With a stand-in for disagg-bench that prints its arguments and ends as it is told."""

    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self.scratch.cleanup)
        self.folder = Path(self.scratch.name)
        self.tool = self.folder / "tool"
        self.tool.write_text('#!/bin/sh\necho "$@"\necho "$SAYS" >&2\nexit "$CODE"\n')
        self.tool.chmod(0o755)

    def run_folder(self, name, machine_id):
        folder = self.folder / name
        folder.mkdir()
        host = {"hostname": "h", "machine_id": machine_id, "memory_bytes": 1}
        processor = {"model": "m", "instruction_set": "i", "usable_cores": 2}
        environment = {"prefill": {"host": host, "processor": processor}}
        (folder / "run.json").write_text(json.dumps({"environment": environment}))
        return folder

    def gate(self, ids, code=0, says=""):
        old, new = (self.run_folder(f"{i}-{code}", machine) for i, machine in enumerate(ids))
        return subprocess.run(
            [sys.executable, HERE / "gate.py", old, new, self.tool, "--fail-on", "split.e2e_ms>5%"],
            env={**os.environ, "CODE": str(code), "SAYS": says},
            capture_output=True,
            text=True,
        )

    def test_one_machine_is_judged(self):
        judged = self.gate(["a", "a"], code=6, says="slower")
        self.assertEqual(judged.returncode, 6)
        self.assertIn("--fail-on split.e2e_ms>5%", judged.stdout)
        self.assertIn("**slower**", judged.stdout)

    def test_another_machine_only_informs(self):
        told = self.gate(["a", "b"])
        self.assertEqual(told.returncode, 0)
        self.assertNotIn("--fail-on", told.stdout)
        self.assertIn("Informative only, no gate: machine h (a) then, h (b) now", told.stdout)

    def test_unlike_experiments_only_inform_and_bad_settings_fail(self):
        unlike = self.gate(["a", "a"], code=3, says="x and y are runs of unlike experiments (prompts)")
        self.assertEqual(unlike.returncode, 0)
        self.assertIn("Not compared", unlike.stdout)
        (self.folder / "again").mkdir()
        self.folder = self.folder / "again"
        self.assertEqual(self.gate(["a", "a"], code=3, says="no such figure").returncode, 3)


if __name__ == "__main__":
    unittest.main()
