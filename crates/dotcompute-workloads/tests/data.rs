//! What the detector finds in `data/` is true: events that are on record elsewhere.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use dotcompute_workloads::anomaly::{
    Alert, Batch, ColumnNames, Detector, Format, Parser, Scanner, Settings, Tally,
};

fn find(name: &str, key: &str, settings: Settings) -> (Vec<Alert>, Tally) {
    let path = format!("{}/../../data/{name}", env!("CARGO_MANIFEST_DIR"));
    let input = std::fs::read(path).unwrap();
    let names = ColumnNames { key: Some(key.into()), ..ColumnNames::default() };
    let (mut parser, mut batch) = (Parser::new(Format::Csv).columns(names), Batch::default());
    parser.feed(&input, &mut batch).unwrap();
    parser.finish(&mut batch).unwrap();
    assert!(batch.tally.balance());
    let scanned = Scanner::new(Detector::new(settings)).scan(&batch);
    assert_eq!((scanned.late, scanned.untimed), (0, 0));
    (scanned.alerts, batch.tally)
}

#[test]
fn the_broken_sensor_and_the_storm_of_january_are_found() {
    let (alerts, tally) = find("nyc-wind-2013.csv", "station", Settings::default());
    assert_eq!((tally.readings, tally.missing, tally.malformed), (26_111, 4, 0));

    let worst = alerts.iter().max_by(|a, b| a.anomaly.z.total_cmp(&b.anomaly.z)).unwrap();
    assert_eq!((&*worst.key, &*worst.time, worst.value), ("EWR", "2013-02-12T08:00Z", 911.0));
    assert!(worst.anomaly.z > 100.0);

    let in_the_storm = |station: &str| {
        alerts.iter().any(|a| *a.key == *station && a.time.starts_with("2013-01-31T09"))
    };
    assert!(in_the_storm("EWR") && in_the_storm("LGA"));
    assert!(alerts.len() < 20, "{} alerts in 26,111 readings", alerts.len());
}

#[test]
fn the_two_great_el_ninos_are_found_and_nothing_else() {
    let (alerts, tally) = find("elnino.csv", "month", Settings::new(0.01, 3.0, 30).unwrap());
    assert_eq!((tally.readings, tally.lines), (732, 733));
    let found: Vec<&str> = alerts.iter().map(|a| a.time.as_str()).collect();
    assert_eq!(
        found,
        [
            "1982-11", "1982-12", "1983-01", "1983-02", "1983-03", "1983-04", "1983-05", "1983-06",
            "1983-07", "1983-08", "1997-07", "1997-08", "1997-09", "1997-10", "1997-11", "1997-12",
            "1998-01", "1998-02", "1998-03",
        ]
    );
    assert!(alerts.iter().all(|a| a.anomaly.z > 3.0), "all of them warm");
}
