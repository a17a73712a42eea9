//! The list of all promises.

/// Makes a `#[test]` of every promise, for the executor that the [`Fixture`](crate::Fixture)
/// names.
///
/// ```no_run
/// dotcompute_conformance::conformance_suite!(dotcompute_conformance::Fixture {
///     executor: "thread",
///     builder: dotcompute::Runtime::builder,
/// });
/// ```
#[macro_export]
macro_rules! conformance_suite {
    ($fixture:expr) => {
        fn fixture() -> $crate::Fixture {
            $fixture
        }

        $crate::conformance_suite! { @tests
            delivery {
                messages_of_one_sender_arrive_in_order_without_loss_or_duplication
                a_mailbox_holds_exactly_its_capacity
                capacity_counts_all_bands_together
                a_more_urgent_band_goes_first_and_each_band_keeps_its_order
                a_waiting_lower_band_gets_one_after_256_in_a_row_from_higher_ones
                blocked_senders_are_admitted_by_band_and_then_in_order
                a_cancelled_send_sends_nothing_and_holds_nobody_up
                a_send_that_times_out_gives_its_message_back
                a_batch_receive_takes_what_is_there
                a_cancelled_receive_loses_no_reply_and_no_wake_up
                a_timed_receive_does_not_time_out_while_a_message_waits
                a_body_may_receive_on_its_thread
                kernels_send_to_each_other_by_address
                a_message_taken_out_of_its_envelope_is_in_hand_until_the_next_receive
            }
            backpressure {
                block_makes_senders_wait_until_there_is_room
                reject_gives_the_message_back_and_counts_it
                drop_oldest_drops_the_oldest_of_the_lowest_occupied_band_and_counts_it
                drop_newest_drops_the_new_message_and_counts_it
                an_ask_whose_message_is_dropped_fails_at_once
                a_kernel_waits_for_room_for_its_reply_if_that_is_the_policy
                a_kernel_that_waits_for_room_for_its_reply_can_be_terminated
                replies_for_a_full_output_are_dropped_or_dead_letters_as_the_policy_says
            }
            asks {
                concurrent_asks_never_mix
                replies_out_of_order_reach_the_asks_that_their_correlation_names
                an_echo_reaches_the_ask_of_the_same_id
                the_correlation_of_a_reply_goes_before_its_id
                a_reply_that_names_nothing_answers_the_oldest_ask_received
                a_reply_to_a_message_that_was_only_sent_never_answers_an_ask
                receive_never_takes_the_reply_to_an_ask
                a_late_reply_is_a_dead_letter
                the_first_reply_answers_the_ask_and_later_ones_are_late
                an_ask_that_ended_before_its_turn_is_skipped_and_counted_expired
                an_ask_cancelled_while_it_waits_for_room_sends_nothing
                an_ask_that_was_not_sent_gives_back_a_message_that_can_be_sent
                kernels_ask_each_other
            }
        }
    };
    (@tests $($module:ident { $($promise:ident)* })*) => {
        $(mod $module {
            $(
                #[test]
                fn $promise() {
                    $crate::run(stringify!($promise), super::fixture(), $crate::$module::$promise);
                }
            )*
        })*
    };
}

#[cfg(test)]
mod tests {
    /// A promise that is written down and not listed would never be tested.
    #[test]
    fn every_promise_is_listed() {
        let list = include_str!("suite.rs");
        let modules = [
            ("delivery", include_str!("delivery.rs")),
            ("backpressure", include_str!("backpressure.rs")),
            ("asks", include_str!("asks.rs")),
        ];
        for (module, source) in modules {
            let promises = source.lines().filter_map(|line| {
                let name = line.strip_prefix("pub fn ")?.strip_suffix("(stage: &Stage) {")?;
                Some(name)
            });
            let mut count = 0;
            for promise in promises {
                assert!(list.lines().any(|line| line.trim() == promise), "{module}::{promise}");
                count += 1;
            }
            assert!(count > 0, "{module} has promises");
        }
    }
}
