// What every kernel includes: CUDA C++ itself under nvcc, the SIMT layer of host/ under a compiler for the host.
//
// A kernel takes one struct by value, has C linkage and ends with EXPORT_KERNEL(name). Shared memory is declared by STATIC_SHARED or
// DYNAMIC_SHARED, 16-bit floats are kept as their bits, and what needs an instruction of its own goes through instructions.cuh, so that
// both compilers see the same code.
#pragma once

#ifdef __CUDACC__
#include <cstdint>
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define STATIC_SHARED(type, name, count) __shared__ type name[count]
#define EXPORT_KERNEL(name)
#else
#include "host/simt.h"
#endif

#include "instructions.cuh"

constexpr unsigned WARP_SIZE = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
