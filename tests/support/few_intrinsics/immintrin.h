/* The intrinsics from MMX to AVX2. gcc needs most of the time of a compilation to read those of AVX-512, which are only
 * used where the target has them. */
#if defined(__GNUC__) && __GNUC__ >= 11 && !defined(__clang__) && !defined(__AVX512F__)
#ifndef _IMMINTRIN_H_INCLUDED
#define _IMMINTRIN_H_INCLUDED
#include <mmintrin.h>

#include <xmmintrin.h>

#include <emmintrin.h>

#include <pmmintrin.h>

#include <tmmintrin.h>

#include <smmintrin.h>

#include <wmmintrin.h>

#include <avxintrin.h>

#include <avxvnniintrin.h>

#include <avx2intrin.h>
#endif
#else
#include_next <immintrin.h>
#endif
