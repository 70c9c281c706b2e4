// SPDX-License-Identifier: Apache-2.0
#include "hostd/tenant_template.h"

#include <random>
#include <set>
#include <string>

#include "tests/support/catch.h"

namespace kvmscope::hostd {
namespace {

using core::TenantId;

TEST_CASE("A project id stands for itself") {
  CHECK(escape_tenant({"4f1a0c2e9b7d4e6f8a5b3c1d2e4f6a8b"}) == "4f1a0c2e9b7d4e6f8a5b3c1d2e4f6a8b");
  CHECK(expand_tenant("/a/${tenant.id}/${tenant.id}.x", {"acme_1-b"}) == "/a/acme_1-b/acme_1-b.x");
  CHECK(expand_tenant("/a/$tenant.id", {"x"}) == "/a/$tenant.id");
  CHECK(expand_tenant("${tenant.id}", {"${tenant.id}"}) == "%24%7Btenant%2Eid%7D");  // not expanded again
}

TEST_CASE("Everything else becomes harmless") {
  CHECK(escape_tenant({"a/b"}) == "a%2Fb");
  CHECK(escape_tenant({"a%2Fb"}) == "a%252Fb");
  CHECK(escape_tenant({".."}) == "%2E%2E");
  CHECK(escape_tenant({std::string("a\0b", 3)}) == "a%00b");
  CHECK(escape_tenant({"a\r\nb"}) == "a%0D%0Ab");
  CHECK(escape_tenant({"\xc3\xa9"}) == "%C3%A9");
  CHECK(escape_tenant({"a~b"}) == "a%7Eb");
}

TEST_CASE("Long ids are cut, and still told apart") {
  const std::string whole(128, 'a');
  CHECK(escape_tenant({whole}) == whole);
  const std::string one = escape_tenant({whole + "b"});
  const std::string other = escape_tenant({whole + "c"});
  CHECK(one.size() == 128);
  CHECK(one != other);
  // 63 bytes, '~', and what `printf 'aaa...b' | sha256sum` prints.
  CHECK(one == std::string(63, 'a') + "~539deb4a951195ca3377514b8a44b95061b4fcd5ae21b29be3748cc835992b52");
  CHECK(escape_tenant({std::string(1'000'000, '/')}).size() == 128);
  CHECK(escape_tenant({""}).starts_with("~e3b0c442"));  // never empty, never anybody's
}

TEST_CASE("No two ids share a word, and no word holds anything but its alphabet") {
  std::mt19937 random(7);  // the same ids at every run
  const std::string alphabet = std::string("aA0-_./%~2E\n\xff", 13) + '\0';
  std::set<std::string> ids;
  std::set<std::string> words;
  for (int i = 0; i < 20'000; ++i) {
    std::string id;
    const std::size_t length = random() % (i % 10 == 0 ? 200 : 6);
    while (id.size() < length) id += alphabet[random() % alphabet.size()];
    const std::string word = escape_tenant({id});
    ids.insert(id);
    words.insert(word);
    REQUIRE_FALSE(word.empty());
    REQUIRE(word.size() <= 128);
    REQUIRE(word.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_%~") ==
            std::string::npos);
  }
  CHECK(words.size() == ids.size());
}

}  // namespace
}  // namespace kvmscope::hostd
