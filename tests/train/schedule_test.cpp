#include "train/schedule.h"

#include "tests/catch.h"

namespace outeffhop {
namespace {

ScheduleConfig schedule(const std::string& type, std::int64_t warmup, double fraction = 0.0, std::int64_t decay = 0) {
  return {type, warmup, fraction, decay};
}

TEST_CASE("The warm-up is linear and ends at the peak") {
  for (const char* type : {"linear", "cosine", "constant", "wsd"}) {
    const ScheduleConfig s = schedule(type, 4);
    CHECK(learning_rate(s, 8.0, 20, 0) == Approx(2.0));
    CHECK(learning_rate(s, 8.0, 20, 1) == Approx(4.0));
    CHECK(learning_rate(s, 8.0, 20, 3) == Approx(8.0));
    CHECK(learning_rate(s, 8.0, 20, 4) == Approx(8.0));
  }
}

TEST_CASE("Each decay has its value half-way and at the end") {
  CHECK(learning_rate(schedule("linear", 4), 8.0, 24, 14) == Approx(4.0));
  CHECK(learning_rate(schedule("linear", 4), 8.0, 24, 23) == Approx(0.4));
  CHECK(learning_rate(schedule("linear", 4, 0.25), 8.0, 24, 14) == Approx(5.0));
  CHECK(learning_rate(schedule("linear", 4, 0.25), 8.0, 24, 24) == Approx(2.0));
  CHECK(learning_rate(schedule("cosine", 4), 8.0, 24, 14) == Approx(4.0));
  CHECK(learning_rate(schedule("cosine", 4), 8.0, 24, 9) == Approx(8.0 * (0.5 + 0.5 * std::sqrt(0.5))));
  CHECK(learning_rate(schedule("cosine", 4, 0.1), 8.0, 24, 24) == Approx(0.8));
  CHECK(learning_rate(schedule("constant", 4), 8.0, 24, 23) == 8.0);
  CHECK(learning_rate(schedule("wsd", 4, 0.0, 10), 8.0, 24, 13) == Approx(8.0));
  CHECK(learning_rate(schedule("wsd", 4, 0.0, 10), 8.0, 24, 19) == Approx(4.0));
}

TEST_CASE("Beyond the end the final rate holds") {
  CHECK(learning_rate(schedule("linear", 0, 0.1), 1.0, 10, 15) == Approx(0.1));
  CHECK(learning_rate(schedule("cosine", 0), 1.0, 10, 11) == Approx(0.0).margin(1e-12));
  CHECK(learning_rate(schedule("wsd", 0, 0.0, 5), 1.0, 10, 11) == 0.0);
}

TEST_CASE("Without a warm-up the first update has the peak") {
  CHECK(learning_rate(schedule("linear", 0), 3.0, 10, 0) == 3.0);
}

}  // namespace
}  // namespace outeffhop
