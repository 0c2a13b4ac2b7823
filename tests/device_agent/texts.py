"""What boards print, verbatim, as their users have published it."""
# ruff: noqa: E501 (lines are as long as they were printed)

# /etc/nv_tegra_release of Nanos with JetPack 4.6 and 4.6.1 to 4.6.3, a TX2 with 4.6.6 (its last
# fields were cut off), and an Orin with 5.1 and 6.2.
NV_TEGRA_RELEASE = {
    "32.6.1": "# R32 (release), REVISION: 6.1, GCID: 27863751, BOARD: t210ref, EABI: aarch64, "
    "DATE: Mon Jul 26 19:20:30 UTC 2021\n",
    "32.7.1": "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64, "
    "DATE: Sat Feb 19 17:05:08 UTC 2022\n",
    "32.7.2": "# R32 (release), REVISION: 7.2, GCID: 30192233, BOARD: t210ref, EABI: aarch64, "
    "DATE: Wed Apr 20 21:34:48 UTC 2022\n",
    "32.7.3": "# R32 (release), REVISION: 7.3, GCID: 31982016, BOARD: t210ref, EABI: aarch64, "
    "DATE: Tue Nov 22 17:30:08 UTC 2022\n",
    "32.7.6": "# R32 (release), REVISION: 7.6, GCID: 38171779, BOARD: t186ref",
}

# `dpkg -l` of a board with JetPack 4.6.4; the last line is made up, of a removed one.
DPKG = """\
ii  cuda-samples-10-2                      10.2.300-1                                 arm64        CUDA example applications
ii  cuda-cudart-10-2                       10.2.300-1                                 arm64        CUDA Runtime native Libraries
ii  libcudnn8                              8.2.1.32-1+cuda10.2                        arm64        cuDNN runtime libraries
ii  libcudnn8-dev                          8.2.1.32-1+cuda10.2                        arm64        cuDNN development libraries and headers
ii  libnvidia-container0:arm64             0.10.0+jetpack                             arm64        NVIDIA container runtime library
ii  libnvinfer-bin                         8.2.1-1+cuda10.2                           arm64        TensorRT binaries
ii  libnvinfer8                            8.2.1-1+cuda10.2                           arm64        TensorRT runtime libraries
ii  nvidia-l4t-core                        32.7.4-20230608212426                      arm64        NVIDIA Core Package
ii  python3-libnvinfer                     8.2.1-1+cuda10.2                           arm64        Python 3 bindings for TensorRT
rc  nvidia-jetpack                         4.6-b199                                   arm64        NVIDIA Jetpack Meta Package
"""

# /proc/meminfo of a Nano 4 GB (L4T 32.7.1) and /proc/swaps of one: zram alone.
NANO_MEMINFO = """\
MemTotal:        4059240 kB
MemFree:          313692 kB
MemAvailable:     592696 kB
Buffers:           57932 kB
Cached:           362944 kB
SwapCached:         6036 kB
Active:          2357748 kB
Inactive:         764220 kB
SwapTotal:       2029616 kB
SwapFree:        1848840 kB
"""
NANO_SWAPS = """\
Filename\t\t\t\tType\t\tSize\tUsed\tPriority
/dev/zram0                              partition\t507408\t0\t5
/dev/zram1                              partition\t507408\t0\t5
/dev/zram2                              partition\t507408\t0\t5
/dev/zram3                              partition\t507408\t0\t5
"""
# A board to which swap on disk was added.
MIXED_SWAPS = """\
Filename\t\t\t\tType\t\tSize\tUsed\tPriority
/dev/zram0                              partition\t1008092\t0\t5
/var/lib/swapspace/1                    file\t\t1348320\t0\t-1
"""

# One core of a Nano (Cortex-A57), of a Raspberry Pi 5 (A76), and of a PC without AVX-512 and one
# with VNNI, flags shortened to those that matter and some around them.
A57 = """\
processor       : 3
model name      : ARMv8 Processor rev 1 (v8l)
BogoMIPS        : 38.40
Features        : fp asimd evtstrm aes pmull sha1 sha2 crc32
CPU implementer : 0x41
CPU architecture: 8
CPU variant     : 0x1
CPU part        : 0xd07
CPU revision    : 1
"""
A76 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1
"""
AVX2 = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Core(TM) i7-6700 CPU @ 3.40GHz
flags\t\t: fpu sse4_1 sse4_2 x2apic movbe popcnt aes xsave avx f16c rdrand bmi1 avx2 smep bmi2
"""
VNNI = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: fpu sse4_2 avx bmi1 avx2 bmi2 avx512f avx512bw avx_vnni avx512_vnni amx_bf16 amx_tile amx_int8
"""

# trtexec's first line: --help of 8.4.12 and 8.6.1 on Jetsons, runs of 8.2.1 and 10.3.0, a version
# before it told one, and a run of a later build.
TRTEXEC = {
    "8.4.12": "&&&& RUNNING TensorRT.trtexec [TensorRT v8412] # trtexec --help\n=== Model Options ===",
    "8.6.1": "&&&& RUNNING TensorRT.trtexec [TensorRT v8601] # trtexec --help\n=== Model Options ===",
    "8.2.1": "&&&& RUNNING TensorRT.trtexec [TensorRT v8201] # trtexec --workspace=2048 --onnx=a",
    "10.3.0": "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --help\n",
    None: "&&&& RUNNING TensorRT.trtexec # trtexec\n=== Model Options ===\n",
}
