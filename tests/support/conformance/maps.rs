//! Laws of [`KeyValue`](cofferdam::ports::KeyValue).

use std::sync::Arc;
use std::time::Duration;

use cofferdam::job::Entries;

use super::{Bench, Make, entries, set, unset};

const TTL: Option<Duration> = Some(Duration::from_secs(10));
const ALMOST: Duration = Duration::from_micros(9_999_999);
const A_BIT: Duration = Duration::from_micros(1);

pub fn a_map_holds_what_was_applied(make: Make) {
    let bench = Bench::new(make);
    let maps = bench.backend.key_value();
    assert_eq!(maps.load("m", None), Ok(Entries::new()));
    maps.apply("m", &[set("b", "2"), set("a", "1")], None).unwrap();
    assert_eq!(maps.load("m", None), Ok(entries([("a", "1"), ("b", "2")])));
    assert_eq!(maps.load("n", None), Ok(Entries::new()), "maps are apart");
    let bytes: Arc<[u8]> = (0..=255).collect();
    let change = cofferdam::job::Change { key: Arc::from("\0 ü"), value: Some(bytes.clone()) };
    maps.apply("m", &[change], None).unwrap();
    assert_eq!(maps.load("m", None).unwrap().get("\0 ü"), Some(&bytes), "any bytes");
}

pub fn changes_replace_and_remove(make: Make) {
    let bench = Bench::new(make);
    let maps = bench.backend.key_value();
    maps.apply("m", &[set("a", "1"), set("b", "1"), set("c", "")], None).unwrap();
    maps.apply("m", &[set("a", "2"), unset("b"), unset("unheard of")], None).unwrap();
    assert_eq!(maps.load("m", None), Ok(entries([("a", "2"), ("c", "")])));
}

pub fn an_emptied_map_is_absent(make: Make) {
    let bench = Bench::new(make);
    let maps = bench.backend.key_value();
    let empty = bench.backend.sizes();
    maps.apply("m", &[set("a", "1")], None).unwrap();
    maps.apply("n", &[set("a", "1")], TTL).unwrap();
    assert_ne!(bench.backend.sizes(), empty);
    maps.apply("m", &[unset("a")], None).unwrap();
    maps.apply("n", &[unset("a")], TTL).unwrap();
    maps.apply("o", &[unset("a")], None).unwrap();
    maps.apply("o", &[], TTL).unwrap();
    assert_eq!(bench.backend.sizes(), empty);
}

pub fn a_map_lives_exactly_for_its_time(make: Make) {
    let bench = Bench::new(make);
    let maps = bench.backend.key_value();
    maps.apply("m", &[set("a", "1")], TTL).unwrap();
    bench.backend.advance(ALMOST);
    assert_eq!(maps.load("m", None), Ok(entries([("a", "1")])));
    bench.backend.advance(A_BIT);
    assert_eq!(maps.load("m", TTL), Ok(Entries::new()), "before anybody swept");
}

pub fn a_use_renews_a_maps_time(make: Make) {
    let bench = Bench::new(make);
    let maps = bench.backend.key_value();
    maps.apply("m", &[set("a", "1")], TTL).unwrap();
    bench.pass(ALMOST);
    assert_eq!(maps.load("m", TTL), Ok(entries([("a", "1")])));
    bench.pass(ALMOST);
    maps.apply("m", &[set("b", "2")], TTL).unwrap();
    bench.pass(ALMOST);
    assert_eq!(maps.load("m", None), Ok(entries([("a", "1"), ("b", "2")])));
    bench.pass(A_BIT);
    assert_eq!(maps.load("m", None), Ok(Entries::new()));
}

pub fn a_map_without_a_time_stays(make: Make) {
    let bench = Bench::new(make);
    let maps = bench.backend.key_value();
    maps.apply("m", &[set("a", "1")], None).unwrap();
    maps.apply("n", &[set("a", "1")], TTL).unwrap();
    maps.apply("n", &[set("b", "1")], None).unwrap();
    bench.pass(Duration::from_secs(1_000_000));
    assert_eq!(maps.load("m", None), Ok(entries([("a", "1")])));
    assert_eq!(maps.load("n", None), Ok(entries([("a", "1"), ("b", "1")])));
}

pub fn changes_after_a_maps_time_start_from_nothing(make: Make) {
    let bench = Bench::new(make);
    let maps = bench.backend.key_value();
    maps.apply("m", &[set("a", "1")], TTL).unwrap();
    bench.backend.advance(ALMOST + A_BIT);
    maps.apply("m", &[set("b", "2")], TTL).unwrap();
    assert_eq!(maps.load("m", None), Ok(entries([("b", "2")])));
}
