"""Replays a recording: NVML as a module like ``pynvml``, ``/sys`` and ``/proc`` as a tree below a folder."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml

RECORDINGS = Path(__file__).parent / "recordings"
MIB = 2**20


def answer(value: Any) -> Any:
    """The recorded value, or the recorded refusal as the real exception."""
    if isinstance(value, dict) and "error" in value:
        raise pynvml.NVMLError(getattr(pynvml, f"NVML_ERROR_{value['error']}"))
    return value


def _process(recorded: dict[str, Any]) -> SimpleNamespace:
    mib = recorded["mib"]
    return SimpleNamespace(pid=recorded["pid"], usedGpuMemory=None if mib is None else mib * MIB)


class FakeNvml:
    """Answers from a recording. A call before ``nvmlInit`` or after ``nvmlShutdown`` is refused, as by NVML."""

    NVMLError = pynvml.NVMLError
    NVML_ERROR_LIBRARY_NOT_FOUND = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    NVML_ERROR_DRIVER_NOT_LOADED = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    NVML_GPU_VIRTUALIZATION_MODE_VGPU = pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU

    def __init__(self, recording: dict[str, Any]) -> None:
        self.recording = recording
        self.references = 0
        self.initialized = 0

    def nvmlInit(self) -> None:
        answer(self.recording.get("init"))
        self.references += 1
        self.initialized += 1

    def nvmlShutdown(self) -> None:
        self._check()
        self.references -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        self._check()
        return answer(self.recording["driver"])

    def nvmlDeviceGetCount(self) -> int:
        self._check()
        return len(self.recording["gpus"])

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        self._check()
        return answer(self.recording["gpus"][index])

    def nvmlDeviceGetName(self, handle: dict[str, Any]) -> str:
        return self._get(handle, "name")

    def nvmlDeviceGetUUID(self, handle: dict[str, Any]) -> str:
        return self._get(handle, "uuid")

    def nvmlDeviceGetCudaComputeCapability(self, handle: dict[str, Any]) -> tuple[int, int]:
        major, minor = self._get(handle, "compute_capability")
        return major, minor

    def nvmlDeviceGetMemoryInfo(self, handle: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(total=self._get(handle, "memory_mib") * MIB)

    def nvmlDeviceGetVirtualizationMode(self, handle: dict[str, Any]) -> int:
        return self._get(handle, "virtualization_mode")

    def nvmlDeviceGetMigMode(self, handle: dict[str, Any]) -> list[int]:
        return self._get(handle, "mig_mode")

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: dict[str, Any]) -> int:
        self._check()
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: dict[str, Any], index: int) -> dict[str, Any]:
        devices = handle.get("mig_devices", [])
        return answer(devices[index] if index < len(devices) else {"error": "NOT_FOUND"})

    def nvmlDeviceGetGpuInstanceId(self, handle: dict[str, Any]) -> int:
        return self._get(handle, "gpu_instance")

    def nvmlDeviceGetComputeInstanceId(self, handle: dict[str, Any]) -> int:
        return self._get(handle, "compute_instance")

    def nvmlDeviceGetAttributes_v2(self, handle: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(
            memorySizeMB=self._get(handle, "memory_mib"),
            gpuInstanceSliceCount=self._get(handle, "gpu_instance_slices"),
            computeInstanceSliceCount=self._get(handle, "compute_instance_slices"),
        )

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: dict[str, Any]) -> list[SimpleNamespace]:
        return [_process(process) for process in self._next(handle, "compute_processes")]

    def nvmlDeviceGetGraphicsRunningProcesses_v3(self, handle: dict[str, Any]) -> list[SimpleNamespace]:
        return [_process(process) for process in self._next(handle, "graphics_processes")]

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: dict[str, Any]) -> int:
        return self._next(handle, "reasons")

    def nvmlDeviceGetClockInfo(self, handle: dict[str, Any], which: int) -> int:
        return self._next(handle, {pynvml.NVML_CLOCK_SM: "sm_clock"}[which])

    def nvmlDeviceGetMaxClockInfo(self, handle: dict[str, Any], which: int) -> int:
        return self._next(handle, {pynvml.NVML_CLOCK_SM: "sm_clock_limit"}[which])

    def nvmlDeviceGetTemperatureV(self, handle: dict[str, Any], sensor: int) -> int:
        return self._next(handle, {pynvml.NVML_TEMPERATURE_GPU: "temperature"}[sensor])

    def nvmlDeviceGetPowerUsage(self, handle: dict[str, Any]) -> int:
        return self._next(handle, "milliwatts")

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: dict[str, Any]) -> int:
        return self._next(handle, "milliwatts_limit")

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: dict[str, Any]) -> int:
        return self._next(handle, "millijoules")

    def nvmlDeviceGetViolationStatus(self, handle: dict[str, Any], policy: int) -> SimpleNamespace:
        key = {pynvml.NVML_PERF_POLICY_POWER: "power", pynvml.NVML_PERF_POLICY_THERMAL: "thermal"}[policy]
        return SimpleNamespace(referenceTime=0, violationTime=self._next(handle, f"{key}_violation_ns"))

    def _next(self, handle: dict[str, Any], key: str) -> Any:
        """The next of a list of answers, the last again and again; a question that was not recorded is refused."""
        self._check()
        answers = handle.get(key, [{"error": "NOT_SUPPORTED"}])
        return answer(answers.pop(0) if len(answers) > 1 else answers[0])

    def _get(self, handle: dict[str, Any], key: str) -> Any:
        self._check()
        return answer(handle[key])

    def _check(self) -> None:
        if self.references < 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)


def nvml(name: str) -> FakeNvml:
    return FakeNvml(json.loads((RECORDINGS / "nvml" / f"{name}.json").read_text()))


def cpuinfo(name: str) -> str:
    return (RECORDINGS / "cpuinfo" / f"{name}.txt").read_text()


def tree(root: Path, files: dict[str, Any] | str) -> Path:
    """Writes a recording (or a mapping of paths to texts) below a folder, which it returns."""
    if isinstance(files, str):
        files = json.loads((RECORDINGS / "sysfs" / f"{files}.json").read_text())
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            path.symlink_to(content["link"])
        else:
            path.write_text(content)
    return root
