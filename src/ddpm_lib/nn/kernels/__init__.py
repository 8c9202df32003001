"""Kernels of the library's own, each with an eager formula that gives the same numbers without
it.
"""

from ddpm_lib.nn.kernels.build import library as library
from ddpm_lib.nn.kernels.group_norm import norm_act as norm_act
from ddpm_lib.nn.kernels.group_norm import norm_act_beside as norm_act_beside
from ddpm_lib.nn.kernels.norm_on_gpu import triton_kernels as triton_kernels
from ddpm_lib.nn.kernels.small_conv import conv3x3 as conv3x3
