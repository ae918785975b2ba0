"""Manual: the examples that each command shows in its help."""

from __future__ import annotations

import click

#: By command, lines that a user can type as they stand, given the files that they name.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "compile": (
        "polycast compile model.onnx -t cpu -o out",
        "polycast compile model.onnx -t cpu -p fp32,int8 --calibration c.npz --data test.npz -o out",
        "polycast compile model.onnx -t cuda:sm_90,webgpu -p fp16 -o out",
        "polycast compile model.onnx -t webgpu --shape x=..8,3,224,224 -o out",
        "polycast compile model.onnx -t cpu@tvm --tune 10 -o out",
        "polycast compile model.onnx -p auto --calibration c.npz --data test.npz --max-drop 1pp -o out",
        "polycast compile model.onnx -t android -p auto --calibration c.npz --max-size 500KB -o out",
        "polycast compile ./bert-folder --shape input_ids=1,128 -o out",
    ),
    "evaluate": (
        "polycast evaluate out/cpu-fp32 --against model.onnx --data test.npz",
        "polycast evaluate out/cpu-* --against model.onnx --data test.npz --max-drop 1pp --max-latency 5 --json e.json",
    ),
    "sweep": (
        "polycast sweep model.onnx -t cpu -p fp32,fp16,int8,auto --calibration c.npz --data test.npz -o out",
        "polycast sweep model.onnx -t cpu,webgpu -p fp32,int4 --data test.npz --max-drop 1pp -o out",
    ),
    "report": (
        "polycast report e.json",
        "polycast report out --format html -o report.html",
    ),
    "verify": (
        "polycast verify out/cpu-fp32",
        "polycast verify out/cpu-aarch64-int8 --ssh pi@raspberrypi.local",
        "polycast verify out/android-int8 --adb",
    ),
    "serve": ("polycast serve out/webgpu-fp32",),
    "targets": (
        "polycast targets",
        "polycast targets --json",
    ),
    "setup": (
        "polycast setup cuda@onnxruntime",
        "polycast setup cpu:aarch64",
    ),
    "passes": (
        "polycast passes",
        "polycast passes --json",
    ),
    "show": (
        "polycast show model.onnx",
        "polycast show model.onnx -t webgpu -p int4",
        "polycast show out/cpu-fp32",
    ),
}


class Command(click.Command):
    """A command whose help shows its examples under what it says."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See ``click.Command``."""
        super().format_help_text(ctx, formatter)
        formatter.write_paragraph()
        with formatter.indentation():
            for line in EXAMPLES.get(self.name or "", ()):
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class Group(click.Group):
    """Commands with examples."""

    command_class = Command
