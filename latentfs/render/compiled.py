"""Torch side: a VAE that decodes through torch.compile.

Compiled kernels give other pixels than PyTorch's own.  So what was to be compiled is compiled, or
is an error: where PyTorch would go on without (too many shapes, code it can't follow, compiling
switched off), it may not.  Nor may the pixels depend on what was fastest at the time, so nothing is
chosen by measuring.
"""

from __future__ import annotations

import os
import types
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from latentfs.errors import VaeError

__all__ = ["CompiledVae"]

# Kernels of one shape take some megabytes.
_SHAPES_MAX = 64
_REASON_CHARACTERS_MAX = 300
_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"

Decode = Callable[[torch.Tensor], torch.Tensor]


class CompiledVae:
    """Decodes as *vae* does, each shape with kernels of its own.  Belongs to one thread.

    Kernels are kept on disk too, so that the next process compiles a known shape within seconds.

    Args:
        while_compiling: entered for the first decode of each shape.
    """

    def __init__(
        self, vae: Any, *, while_compiling: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        _configure()
        self._vae = vae
        self._while_compiling = while_compiling
        # CPU kernels are made for a number of threads.
        self._decoders: OrderedDict[tuple[tuple[int, ...], int], Decode] = OrderedDict()

    def decode(self, z: torch.Tensor, *, return_dict: bool) -> tuple[torch.Tensor]:
        """Return what the VAE's own ``decode`` returns without a dict.

        Raises:
            VaeError: it can't be compiled.
        """
        assert not return_dict
        key = (tuple(z.shape), torch.get_num_threads())
        decode = self._decoders.get(key)
        if decode is not None:
            self._decoders.move_to_end(key)
            return (self._run(decode, z),)
        with self._while_compiling():
            decode, sample = self._compiled(z)
        self._decoders[key] = decode
        if len(self._decoders) > _SHAPES_MAX:
            self._decoders.popitem(last=False)
        return (sample,)

    def _compiled(self, z: torch.Tensor) -> tuple[Decode, torch.Tensor]:
        """Return the decoder for the shape of *z*, and what it makes of *z*."""
        vae = self._vae
        inductor: Any = torch._dynamo.lookup_backend("inductor")
        graphs = 0

        def compile_graph(graph: Any, inputs: Any) -> Any:
            nonlocal graphs
            graphs += 1
            return inductor(graph, inputs)

        def decode(z: torch.Tensor) -> Any:
            return vae.decode(z, return_dict=False)[0]

        compiled: Decode = torch.compile(
            _with_own_code(decode), backend=compile_graph, fullgraph=True, dynamic=False
        )
        sample = self._run(compiled, z)
        if graphs == 0:
            raise VaeError(
                "PyTorch was told not to compile; unset TORCHDYNAMO_DISABLE, or add the VAE "
                "without --compile"
            )
        return compiled, sample

    def _run(self, decode: Decode, z: torch.Tensor) -> torch.Tensor:
        try:
            return decode(z)
        except (
            torch._dynamo.exc.TorchDynamoException,
            torch._dynamo.exc.FailOnRecompileLimitHit,
        ) as error:
            raise self._meaning(error, tuple(z.shape)) from None

    def _meaning(self, error: Exception, shape: tuple[int, ...]) -> Exception:
        cause: Exception = error
        while isinstance(cause, torch._dynamo.exc.BackendCompilerFailed):
            cause = cause.inner_exception
        if isinstance(cause, (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)):
            return cause
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:_REASON_CHARACTERS_MAX]
        return VaeError(
            f"PyTorch {torch.__version__} can't compile {type(self._vae).__name__} for latents of "
            f"shape {shape}: {reason}; install a C++ compiler such as g++ if there is none, or add "
            "the VAE without --compile"
        )


def _with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return *function* with a code object of its own.

    What is compiled is kept with the code object: so each shape has all of PyTorch's limit to
    itself, and goes with its decoder.
    """
    return types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


def _configure() -> None:
    """Forbid PyTorch to go on uncompiled, to choose by measuring, and to use files of others.

    Raises:
        VaeError: this PyTorch is too old, or there is no folder for what is compiled.
    """
    # Not at the top: they take a second, and few VAEs are compiled.
    import torch._dynamo.config
    import torch._inductor.config

    dynamo: Any = torch._dynamo.config
    inductor: Any = torch._inductor.config
    if not hasattr(inductor, "deterministic"):
        raise VaeError(
            f"PyTorch {torch.__version__} chooses compiled kernels by measuring; install 2.9 or "
            "newer, or add the VAE without --compile"
        )
    _make_cache_folder()
    dynamo.disable = False
    dynamo.suppress_errors = False
    dynamo.fail_on_recompile_limit_hit = True
    inductor.deterministic = True
    inductor.max_autotune = False
    inductor.max_autotune_gemm = False
    inductor.max_autotune_pointwise = False
    inductor.coordinate_descent_tuning = False
    inductor.freezing = False
    # They would be kept where anybody may write, whatever _CACHE_VARIABLE says.
    inductor.cpp_cache_precompile_headers = False


def _make_cache_folder() -> None:
    """Make PyTorch keep what it compiles with the user's caches.

    Its default has a name that anybody can guess, in a folder where anybody may write.
    """
    if _CACHE_VARIABLE in os.environ:
        return
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(caches) / "latentfs" / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise VaeError(
            f"compiled kernels can't be kept in {folder}: {error.strerror}; set {_CACHE_VARIABLE} "
            "to a folder that can be written to"
        ) from error
    os.environ[_CACHE_VARIABLE] = str(folder)
