# Included by CMake at llama.cpp's own project() call (CMAKE_PROJECT_<name>_INCLUDE), which comes
# after llama-cpp-python has forced these on. A router needs libllama and ggml, nothing else: leaving
# the rest out takes the build from about five minutes to about two on two cores.
foreach(part COMMON TESTS TOOLS EXAMPLES SERVER APP UI MTMD)
  set(LLAMA_BUILD_${part} OFF CACHE BOOL "not needed by a router" FORCE)
endforeach()
