# SPDX-License-Identifier: Apache-2.0
# Flags that every target of ours shares, and the one way to declare a room and a test.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)

find_program(KVMSCOPE_CCACHE ccache)
if(KVMSCOPE_CCACHE)
  set(CMAKE_C_COMPILER_LAUNCHER ${KVMSCOPE_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${KVMSCOPE_CCACHE})
endif()

add_library(kvmscope_flags INTERFACE)
target_compile_options(kvmscope_flags INTERFACE
  -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Wold-style-cast -Wimplicit-fallthrough -Werror
  -fstack-protector-strong
  # A designated initialiser that names what matters leaves the rest empty on purpose.
  -Wno-missing-field-initializers)
target_include_directories(kvmscope_flags INTERFACE ${CMAKE_SOURCE_DIR})
target_link_libraries(kvmscope_flags INTERFACE Threads::Threads)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  # libstdc++ 12 hides std::expected from clang unless it claims the concepts version it has long implemented.
  target_compile_options(kvmscope_flags INTERFACE -Wno-builtin-macro-redefined -D__cpp_concepts=202002L)
endif()
if(KVMSCOPE_SANITIZE)
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(KVMSCOPE_TSAN)
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer)
  add_link_options(-fsanitize=thread)
endif()

# kvmscope_room(name SOURCES ... [LIBS ...] [PRIVATE_LIBS ...]): the static library kvmscope_<name>.
function(kvmscope_room name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS;PRIVATE_LIBS" ${ARGN})
  add_library(kvmscope_${name} STATIC ${ARG_SOURCES})
  target_link_libraries(kvmscope_${name} PUBLIC kvmscope_flags ${ARG_LIBS} PRIVATE ${ARG_PRIVATE_LIBS})
endfunction()

# kvmscope_test(name LABEL unit|bpf [LIBS ...]): every *_test.cpp of this folder in one Catch2 program.
# The glob is what makes a test impossible to forget.
function(kvmscope_test name)
  cmake_parse_arguments(ARG "" "LABEL;TIMEOUT" "LIBS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*_test.cpp)
  add_executable(${name} ${sources})
  target_link_libraries(${name} PRIVATE kvmscope_catch ${ARG_LIBS})
  target_compile_definitions(${name} PRIVATE KVMSCOPE_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS ${ARG_LABEL} TIMEOUT ${ARG_TIMEOUT})
endfunction()
