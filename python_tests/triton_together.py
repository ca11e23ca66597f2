# SPDX-License-Identifier: Apache-2.0
"""Runs the programs of a launch together in Triton's interpreter, and looks for races.

The interpreter runs one program after another, so programs that wait for each other would wait for
ever. Here every program is a thread. One runs at a time; at an access to memory the turn may pass
to another one, as a seeded generator decides, and at an atomic it is likely to.

Races are found with vector clocks. Two programs are ordered only by a release and an acquire of the
same address; two accesses of one word by two programs, one of them a write, must be ordered. Inside
a program a barrier must stand between a write and a read of one word: other threads may read it.
"""

from __future__ import annotations

import inspect
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

Array = np.ndarray[Any, Any]
SECONDS = 120  # for a launch, all programs together
POISON = 0x7FFFFFFF  # what fresh memory is filled with, see conftest


class RaceError(AssertionError):
    """Two accesses that nothing orders."""


class Shadow:
    """What is known of each 32-bit word of one allocation."""

    def __init__(self, tensor: Tensor, programs: int) -> None:
        storage = tensor.untyped_storage()
        self.low, self.bytes = storage.data_ptr(), storage.nbytes()
        words = -(-self.bytes // 4)
        values = torch.empty(0, dtype=torch.uint8).set_(storage)[: 4 * (self.bytes // 4)]
        self.empty = np.zeros(words, bool)
        self.empty[: self.bytes // 4] = values.view(torch.int32).numpy() == POISON
        self.writer = np.full(words, -1)
        self.written = np.zeros(words, np.int64)  # the writer's clock
        self.phase = np.zeros(words, np.int64)  # the writer's barriers
        self.read = np.zeros((words, programs), np.int64)


class World:
    """The programs of one launch: whose turn it is, and what each has seen of the others."""

    def __init__(self, programs: int, tensors: list[Tensor], seed: int) -> None:
        self.draw = random.Random(seed)
        self.turn = [threading.Semaphore(0) for _ in range(programs)]
        self.running = list(range(programs))
        self.error: BaseException | None = None
        self.here = threading.local()
        self.clocks = np.eye(programs, dtype=np.int64)  # [program, what it has seen of each]
        self.released: dict[int, Array] = {}
        self.barriers = [0] * programs
        storages = {t.untyped_storage().data_ptr(): t for t in tensors}
        self.shadows = [Shadow(t, programs) for t in storages.values()]

    @property
    def me(self) -> int:
        """The program of this thread."""
        program: int = self.here.program
        return program

    def pause(self, chance: float) -> None:
        """Perhaps let another program run."""
        if self.draw.random() < chance:
            other = self.draw.choice(self.running)
            if other != self.me:
                self.turn[other].release()
                self.turn[self.me].acquire()
        if self.error is not None:
            raise SystemExit

    def leave(self) -> None:
        """This program has ended."""
        self.running.remove(self.me)
        for program in self.running if self.error else self.running[:1]:
            self.turn[program].release()

    def words(self, pointers: Any, mask: Any, size: int) -> tuple[Shadow, Array] | None:
        at = np.asarray(pointers.data).ravel()
        taken = np.broadcast_to(mask.data, np.shape(pointers.data)).ravel().astype(bool)
        at = at[taken].astype(np.int64)
        if not at.size:
            return None
        for shadow in self.shadows:
            if shadow.low <= at[0] < shadow.low + shadow.bytes:
                offset = at - shadow.low
                if offset.min() < 0 or offset.max() + size > shadow.bytes:
                    raise RaceError("an access beyond an allocation")
                return shadow, np.unique(offset[:, None] // 4 + np.arange(-(-size // 4)))
        raise RaceError("an access outside every argument")

    def _unordered(self, shadow: Shadow, words: Array) -> bool:
        writer = shadow.writer[words]
        seen = self.clocks[self.me][np.maximum(writer, 0)]
        others = (writer >= 0) & (writer != self.me)
        return bool((others & (shadow.written[words] > seen)).any())

    def reads(self, shadow: Shadow, words: Array) -> None:
        if self._unordered(shadow, words):
            raise RaceError("a read that is not ordered after another program's write")
        if (shadow.empty[words] & (shadow.writer[words] < 0)).any():
            raise RaceError("a read of what nobody has written")
        own = (shadow.writer[words] == self.me) & (shadow.phase[words] == self.barriers[self.me])
        if own.any():
            raise RaceError("a read of what other threads of the program may not have written yet")
        shadow.read[words, self.me] = self.clocks[self.me, self.me]

    def writes(self, shadow: Shadow, words: Array) -> None:
        reads = shadow.read[words].copy()
        reads[:, self.me] = 0
        if self._unordered(shadow, words) or (reads > self.clocks[self.me]).any():
            raise RaceError("a write that is not ordered after another program's access")
        shadow.writer[words] = self.me
        shadow.written[words] = self.clocks[self.me, self.me]
        shadow.phase[words] = self.barriers[self.me]

    def atomic(self, address: int, semantics: str) -> None:
        released = self.released.setdefault(address, np.zeros(len(self.turn), np.int64))
        clock = self.clocks[self.me]
        if "ACQUIRE" in semantics:
            np.maximum(clock, released, out=clock)
        if "RELEASE" in semantics:
            np.maximum(released, clock, out=released)
            clock[self.me] += 1


class Together:
    """Patches the interpreter while it is in use; `launch` has the shape of `_common.launch`."""

    def __init__(self, patch: pytest.MonkeyPatch, seed: int) -> None:
        self.seed = seed
        self.world: World | None = None
        builder = interpreter.InterpreterBuilder
        load, store = builder.create_masked_load, builder.create_masked_store
        rmw, program_id = builder.create_atomic_rmw, builder.create_get_program_id

        def masked_load(this: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
            if self.world is not None:
                self.world.pause(0.05)
                size = interpreter._get_np_dtype(pointers.get_element_ty()).itemsize
                found = self.world.words(pointers, mask, size)
                if found is not None:
                    self.world.reads(*found)
            return load(this, pointers, mask, *rest)

        def masked_store(this: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            if self.world is not None:
                self.world.pause(0.05)
                found = self.world.words(pointers, mask, value.data.itemsize)
                if found is not None:
                    self.world.writes(*found)
            return store(this, pointers, value, mask, *rest)

        def atomic(
            this: Any, op: Any, pointer: Any, value: Any, mask: Any, sem: Any, _: Any
        ) -> Any:
            if self.world is None:
                return rmw(this, op, pointer, value, mask, sem, _)
            self.world.pause(0.9)
            result = rmw(this, op, pointer, value, mask, sem, _)
            self.world.atomic(int(np.asarray(pointer.data).ravel()[0]), str(sem))
            return result

        def barrier(this: Any) -> None:
            if self.world is not None:
                self.world.barriers[self.world.me] += 1

        def get_program_id(this: Any, axis: int) -> Any:
            if self.world is None:
                return program_id(this, axis)
            index = np.array([self.world.me if axis == 0 else 0], dtype=np.int32)
            return interpreter.TensorHandle(index, interpreter.tl.int32)

        for name, function in (
            ("create_masked_load", masked_load),
            ("create_masked_store", masked_store),
            ("create_atomic_rmw", atomic),
            ("create_barrier", barrier),
            ("create_get_program_id", get_program_id),
        ):
            patch.setattr(builder, name, function)

    def launch(self, kernel: Any, programs: int, device: Any, *args: Any, **options: Any) -> None:
        """Run all programs of a launch together.

        Raises:
            RaceError, or whatever a program raises.
        """
        options.pop("together", None)
        function: Callable[..., None] = kernel.rewrite()
        spec = inspect.getfullargspec(function)
        given = {name: value for name, value in options.items() if name in spec.args}
        call = inspect.getcallargs(function, *args, **given)
        world = World(programs, [v for v in call.values() if isinstance(v, Tensor)], self.seed)
        constants = {n for n, kind in function.__annotations__.items() if "constexpr" in str(kind)}
        call = {
            name: value if name in constants else interpreter._implicit_cvt(value)
            for name, value in call.items()
        }
        scope = interpreter._patch_lang(kernel.fn)
        interpreter.interpreter_builder.set_grid_dim(programs, 1, 1)
        threads = [
            threading.Thread(target=self._program, args=(world, p, function, call), daemon=True)
            for p in range(programs)
        ]
        self.world = world
        try:
            for thread in threads:
                thread.start()
            world.turn[world.draw.randrange(programs)].release()
            for thread in threads:
                thread.join(SECONDS)
                if thread.is_alive():
                    raise RaceError("the programs wait for ever")
        finally:
            self.world = None
            scope.restore()
        if world.error is not None:
            raise world.error

    def _program(
        self, world: World, program: int, function: Callable[..., None], call: dict[str, Any]
    ) -> None:
        world.here.program = program
        world.turn[program].acquire()
        try:
            if world.error is None:
                with np.errstate(all="ignore"):
                    function(**call)
        except SystemExit:
            pass
        except BaseException as error:  # of any kind: the others must not wait for this one
            while error.__cause__ is not None:
                error = error.__cause__
            if not isinstance(error, SystemExit):
                world.error = world.error or error
        finally:
            world.leave()
