# The CUDA backend, where there is nvcc: outeffhop_kernels gets it, and make_device.cpp learns of it.
if(OUTEFFHOP_CUDA STREQUAL "OFF")
  return()
endif()

# outeffhop_no_cuda(REASON): an error if CUDA was asked for.
function(outeffhop_no_cuda reason)
  if(OUTEFFHOP_CUDA STREQUAL "ON")
    message(FATAL_ERROR "OUTEFFHOP_CUDA=ON, but ${reason}")
  endif()
  message(STATUS "CUDA: ${reason}; the program will train on CPUs only")
endfunction()

if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(OUTEFFHOP_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(OUTEFFHOP_NVCC)
    set(ENV{CUDACXX} ${OUTEFFHOP_NVCC})
  endif()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  outeffhop_no_cuda("no nvcc was found, or it does not work with this C++ compiler")
  return()
endif()
# Before CMake itself looks at the compiler: to one that does not know the architectures it says so as a fatal error.
execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE nvcc_version ERROR_QUIET)
if(NOT nvcc_version MATCHES "release ([0-9]+\\.[0-9]+)" OR CMAKE_MATCH_1 VERSION_LESS 12.4)
  outeffhop_no_cuda("${CMAKE_CUDA_COMPILER} is not nvcc 12.4 or newer")
  return()
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80 90a)
endif()
set(CMAKE_CUDA_ARCHITECTURES ${CMAKE_CUDA_ARCHITECTURES} CACHE STRING "GPU architectures to compile for" FORCE)
enable_language(CUDA)
find_package(CUDAToolkit QUIET)
find_file(CUBLASLT_HEADER cublasLt.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
if(NOT CUBLASLT_HEADER OR NOT TARGET CUDA::cudart_static)
  outeffhop_no_cuda("the CUDA Toolkit has no cuBLASLt or no static runtime library")
  return()
endif()
if(NOT DEFINED CMAKE_CUDA_COMPILER_LAUNCHER AND CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})  # ccache
endif()

add_library(outeffhop_cuda_options INTERFACE)
target_include_directories(outeffhop_cuda_options INTERFACE ${CMAKE_SOURCE_DIR})
target_link_libraries(outeffhop_cuda_options INTERFACE fmt::fmt CUDA::toolkit nlohmann_json::nlohmann_json)
# -lineinfo: profilers and compute-sanitizer name source lines; the machine code is the same. scripts/check_kernels.py
# compiles with the same flags.
target_compile_options(outeffhop_cuda_options INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;-lineinfo;-Xcompiler=-Wall,-Wextra>"
                                                        "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra>")
if(OUTEFFHOP_WERROR)
  target_compile_options(outeffhop_cuda_options INTERFACE
                         "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Werror all-warnings -Xcompiler=-Werror>"
                         "$<$<COMPILE_LANGUAGE:CXX>:-Werror>")
endif()

# outeffhop_cuda_objects(NAME sources...)
function(outeffhop_cuda_objects name)
  add_library(${name} OBJECT ${ARGN})
  target_link_libraries(${name} PRIVATE outeffhop_cuda_options)
  # CMake 3.25 does not know that nvcc compiles C++20.
  set_target_properties(${name} PROPERTIES CUDA_STANDARD_REQUIRED OFF CUDA_EXTENSIONS ON)
endfunction()

file(GLOB cuda_sources CONFIGURE_DEPENDS cuda/*.cu cuda/*.cpp)
file(GLOB cuda_attention_kernels CONFIGURE_DEPENDS cuda/attention*.cu)
list(REMOVE_ITEM cuda_sources ${cuda_attention_kernels})
outeffhop_cuda_objects(outeffhop_cuda ${cuda_sources})
foreach(suffix IN ITEMS "" "_vanilla")
  outeffhop_cuda_objects(outeffhop_cuda_attention${suffix} ${cuda_attention_kernels})
  if(suffix)
    target_compile_definitions(outeffhop_cuda_attention${suffix} PRIVATE OUTEFFHOP_VANILLA_SOFTMAX=1)
  endif()
  target_sources(outeffhop_attention${suffix} INTERFACE $<TARGET_OBJECTS:outeffhop_cuda_attention${suffix}>)
endforeach()

# What --version says of it.
string(REGEX REPLACE "-(real|virtual)" "" architectures "${CMAKE_CUDA_ARCHITECTURES}")
list(TRANSFORM architectures PREPEND "sm_" REGEX "^[0-9]")
list(REMOVE_DUPLICATES architectures)
list(JOIN architectures ", " architectures)
target_compile_definitions(outeffhop_make_device PRIVATE
                           OUTEFFHOP_HAS_CUDA=1
                           OUTEFFHOP_CUDA_BUILD="toolkit ${CMAKE_CUDA_COMPILER_VERSION} for ${architectures}")
target_sources(outeffhop_kernels INTERFACE $<TARGET_OBJECTS:outeffhop_cuda>)
# cuBLASLt is loaded when a GPU is used: kernels/cuda/cublaslt_library.cpp.
set_source_files_properties(${CMAKE_CURRENT_SOURCE_DIR}/cuda/cublaslt_library.cpp PROPERTIES COMPILE_DEFINITIONS
                            OUTEFFHOP_CUDA_LIBRARIES="${CUDAToolkit_LIBRARY_DIR}")
target_link_libraries(outeffhop_kernels INTERFACE CUDA::cudart_static ${CMAKE_DL_LIBS})
