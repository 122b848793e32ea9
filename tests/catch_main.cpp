// Catch2 v2 makes main() here; v3 brings its own and leaves this file out of the build.
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
