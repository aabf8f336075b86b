# Included by CMake at ggml's own project() call (CMAKE_PROJECT_ggml_INCLUDE), for builds with kernels for every CPU
# (GGML_CPU_ALL_VARIANTS). It runs once those are defined.
set(POINTSMAN_KERNELS "all" CACHE STRING "the kernels to compile, such as haswell,zen4, or all")
string(REPLACE "," ";" POINTSMAN_KERNELS "${POINTSMAN_KERNELS}")

function(pointsman_kernels)
  get_property(targets DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}/src" PROPERTY BUILDSYSTEM_TARGETS)
  list(FILTER targets INCLUDE REGEX "^ggml-cpu-")
  # The cloud's CPUs with AVX2 and no AVX512 are AMD's Zen 2 and 3. Tuned for Zen 3, GCC's code keeps up with a native build
  # there; with GCC's default it makes nine tenths of its speed.
  if(TARGET ggml-cpu-haswell)
    target_compile_options(ggml-cpu-haswell PRIVATE -mtune=znver3)
  endif()
  if(POINTSMAN_KERNELS STREQUAL "all")
    return()
  endif()
  foreach(kernels IN LISTS POINTSMAN_KERNELS)
    if(NOT TARGET "ggml-cpu-${kernels}")
      message(FATAL_ERROR "no kernels are called ${kernels}; there are ${targets}")
    endif()
  endforeach()
  # What is left out becomes an empty library, which llama.cpp passes over: its build and installation ask for each.
  file(WRITE "${CMAKE_BINARY_DIR}/no_kernels.c" "typedef int no_kernels;\n")
  foreach(target IN LISTS targets)
    string(REGEX REPLACE "^ggml-cpu-|-feats$" "" kernels "${target}")
    if(NOT kernels IN_LIST POINTSMAN_KERNELS)
      set_target_properties("${target}" PROPERTIES SOURCES "${CMAKE_BINARY_DIR}/no_kernels.c")
    endif()
  endforeach()
endfunction()
cmake_language(DEFER CALL pointsman_kernels)
