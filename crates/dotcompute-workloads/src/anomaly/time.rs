//! Times of an input as numbers.

use jiff::fmt::temporal::DateTimeParser;
use jiff::tz::TimeZone;

static ISO: DateTimeParser = DateTimeParser::new();

/// A number as it is, or the seconds since 1970 of an ISO 8601 date and time (UTC, if it does not say
/// otherwise); none for any other text.
pub(super) fn seconds(text: &str) -> Option<f64> {
    if let Ok(number) = text.parse::<f64>() {
        return Some(number).filter(|number| number.is_finite());
    }
    let timestamp = ISO
        .parse_timestamp(text)
        .or_else(|_| ISO.parse_datetime(text).and_then(|local| TimeZone::UTC.to_timestamp(local)));
    let time = timestamp.ok()?;
    Some(time.as_second() as f64 + f64::from(time.subsec_nanosecond()) / 1e9)
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn numbers_and_dates_are_times_and_nothing_else_is() {
        for (text, expected) in [
            ("12.5", 12.5),
            ("-3", -3.0),
            ("1970-01-02", 86_400.0),
            ("1970-01-01T00:01Z", 60.0),
            ("1970-01-01 00:01:00.25", 60.25),
            ("1970-01-01T01:00:00+01:00", 0.0),
        ] {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        for text in ["", "1950-01", "Monday", "inf", "NaN", "12:30"] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
