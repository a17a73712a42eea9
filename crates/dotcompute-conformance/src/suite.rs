//! The list of all promises.

use crate::{Fixture, Need, Stage, run};

/// Makes a `#[test]` of every promise, for the executor that the [`Fixture`](crate::Fixture)
/// names.
///
/// ```no_run
/// dotcompute_conformance::conformance_suite!(dotcompute_conformance::Fixture {
///     executor: "thread",
///     builder: dotcompute::Runtime::builder,
///     place: dotcompute_conformance::Place::Here,
/// });
/// ```
///
/// With `by_name:` before the fixture, of every promise that an executor can keep whose kernels run
/// in other [places](crate::Place): not of those that are marked with a [`Need`] in the list.
#[macro_export]
macro_rules! conformance_suite {
    (by_name: $fixture:expr) => {
        fn fixture() -> $crate::Fixture {
            $fixture
        }

        $crate::conformance_suite! { @list tests_by_name }
    };
    ($fixture:expr) => {
        fn fixture() -> $crate::Fixture {
            $fixture
        }

        $crate::conformance_suite! { @list tests }
    };
    (@list $form:ident) => {
        $crate::conformance_suite! { @$form
            delivery {
                messages_of_one_sender_arrive_in_order_without_loss_or_duplication
                a_mailbox_holds_exactly_its_capacity
                capacity_counts_all_bands_together
                a_more_urgent_band_goes_first_and_each_band_keeps_its_order
                with_exact_priorities_the_more_urgent_goes_first_inside_a_band_too
                a_message_has_the_priority_of_its_type_unless_it_is_sent_with_another
                capacity_is_a_limit_and_not_a_reservation
                a_waiting_lower_band_gets_one_after_256_in_a_row_from_higher_ones
                blocked_senders_are_admitted_by_band_and_then_in_order
                a_cancelled_send_sends_nothing_and_holds_nobody_up
                a_send_that_times_out_gives_its_message_back
                a_batch_is_sent_in_order_and_what_finds_no_room_is_left
                a_batch_receive_takes_what_is_there
                a_cancelled_receive_loses_no_reply_and_no_wake_up
                a_timed_receive_does_not_time_out_while_a_message_waits [Mailbox]
                a_body_may_receive_on_its_thread
                kernels_send_to_each_other_by_address [Runtime]
                a_handler_sends_to_other_kernels_by_name [Runtime]
                an_address_takes_batches
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
                a_reply_that_names_an_ask_that_has_ended_is_a_dead_letter
                the_first_reply_answers_the_ask_and_later_ones_are_late
                an_ask_that_ended_before_its_turn_is_skipped_and_counted_expired
                an_ask_cancelled_while_it_waits_for_room_sends_nothing
                an_ask_that_was_not_sent_gives_back_a_message_that_can_be_sent
                kernels_ask_each_other [Runtime]
            }
            faults {
                a_fault_reaches_every_pending_and_later_receive_ask_and_send
                replies_made_before_a_fault_are_read_first
                the_message_in_hand_at_a_fault_is_a_dead_letter
                a_message_taken_by_a_body_that_fails_is_a_dead_letter_without_content [Messages]
                a_fault_with_nothing_in_hand_makes_no_dead_letter
                what_a_handler_emitted_for_the_message_it_failed_at_is_discarded
                a_panic_in_the_destructor_of_a_message_is_a_fault_that_fails_its_ask [Messages]
                a_panic_in_a_destructor_keeps_nobody_from_being_told [Messages]
                a_panic_in_the_factory_is_a_fault
                a_panic_in_a_destructor_of_the_body_is_a_fault
                the_error_that_a_stop_gives_is_no_fault
                the_error_that_the_stop_of_another_kernel_gives_is_a_fault [Runtime]
                who_is_told_of_a_fault_finds_the_kernel_as_told
                a_context_that_escapes_from_its_body_is_reported [Context]
            }
            restarts {
                a_kernel_is_restarted_as_its_policy_says
                a_restart_keeps_mailbox_replies_and_waiters_and_fails_only_the_ask_in_hand
                an_ask_received_before_the_fault_can_be_answered_after_the_restart
                a_kernel_that_fails_while_deactivated_comes_back_paused
                more_restarts_than_the_intensity_allows_fail_the_kernel
                restarts_outside_the_window_do_not_count
                a_restart_waits_for_its_backoff_which_doubles_up_to_its_limit
                a_kernel_in_its_backoff_accepts_messages_and_can_be_ended
                a_kernel_deactivated_in_its_backoff_comes_back_paused
                a_message_is_redelivered_first_and_at_most_three_times
                a_handler_knows_which_delivery_it_is_at
                a_message_that_no_restart_follows_is_a_dead_letter_and_not_put_back
            }
            lifecycle {
                a_kernel_takes_no_part_before_it_is_activated
                a_step_that_the_state_does_not_allow_is_an_error_that_names_both
                deactivate_hands_nothing_out_while_sends_and_timeouts_go_on
                an_ask_of_a_deactivated_kernel_times_out_and_its_replies_can_be_read
                deactivate_takes_effect_before_it_returns
                a_deactivated_kernel_can_be_terminated_and_drained
                a_body_that_returns_ends_its_kernel_and_tells_everyone_who_waits
                a_receiver_is_told_when_the_body_returns
                a_launch_with_a_bad_option_is_refused_and_says_which
                an_unknown_executor_is_refused_and_the_known_ones_are_named
                a_name_in_use_is_refused_until_its_kernel_was_terminated
                a_kernel_found_by_name_has_the_types_asked_for_or_the_error_names_both
                a_kernel_runs_on_without_its_handles
                a_scoped_kernel_ends_with_its_scope
                a_runtime_that_is_dropped_ends_its_kernels_and_tells_everyone_who_waits
            }
            termination {
                an_idle_kernel_ends_at_once
                terminate_tells_everyone_who_waits_and_keeps_what_is_left_as_dead_letters
                replies_that_nobody_read_are_dead_letters
                a_body_that_ignores_its_end_at_an_await_is_cancelled_at_the_deadline
                a_message_whose_reply_was_made_is_processed_though_its_body_is_cancelled
                a_body_that_blocks_its_thread_is_abandoned_at_the_deadline_or_killed
                a_drain_that_does_not_end_in_time_is_cut_off
                a_drain_that_waits_for_a_reader_goes_on_when_there_is_one
                a_drain_right_after_the_activation_processes_what_was_sent
                a_fault_in_a_drain_restarts_the_kernel_if_that_is_its_policy
                a_stop_at_once_overrides_a_drain_that_goes_on
                concurrent_terminates_all_return
                a_kernel_that_terminates_itself_does_not_wait_for_itself [Runtime]
                a_kernel_may_end_another_one_and_the_runtime [Runtime]
                a_body_can_see_that_it_is_to_stop
                a_cancelled_terminate_leaves_its_request_standing
                a_shutdown_ends_all_kernels_within_one_deadline_also_stuck_ones
                a_launch_and_a_shutdown_at_the_same_time_leave_nothing_behind
            }
            dead_letters {
                dead_letters_can_be_read_after_their_kernel_was_terminated
                dead_letters_are_bounded_and_evictions_are_counted
                dead_letters_are_bounded_in_bytes
                a_replay_counts_as_accepted_anew
                dead_letters_are_replayed_in_order_to_the_next_kernel_of_the_name
                a_dead_letter_that_is_sent_on_answers_nobodys_ask
                what_cannot_be_replayed_stays_a_dead_letter
                a_replay_obeys_the_policy_of_its_mailbox
                no_message_outlives_the_runtime_or_is_dropped_twice [Messages]
            }
            pipelines {
                replies_go_straight_to_the_next_kernel_in_order_and_the_books_say_so
                a_full_pipeline_holds_its_senders_back
                a_kernel_may_be_filled_by_a_connection_before_it_is_active
                a_deactivated_stage_holds_those_before_it_back
                receiving_from_a_connected_kernel_is_an_error_also_for_who_waits
                an_ask_of_a_pipeline_is_answered_by_its_last_kernel
                an_ask_through_a_kernel_gets_the_type_that_it_waits_for_or_an_error
                an_asker_gets_the_first_reply_and_later_ones_are_dead_letters
                a_stage_skips_the_message_of_an_ask_that_has_ended
                a_message_that_is_passed_on_has_the_priority_and_the_id_of_the_reply
                the_next_kernels_policy_decides_and_an_ask_that_it_drops_is_told
                a_failed_stage_fails_the_asks_in_it_and_on_their_way
                a_failed_stage_pauses_its_senders_until_it_is_terminated
                a_connection_outlives_restarts_of_either_kernel_and_nothing_is_lost
                replies_that_wait_to_be_read_go_first_when_their_kernel_is_connected
                a_reply_that_waits_for_room_goes_where_its_kernel_is_connected_to
                a_disconnected_kernel_keeps_its_replies_and_its_asks_fail
                a_stage_that_ends_is_disconnected_and_can_be_replaced_without_loss
                draining_a_pipeline_lets_all_come_out_at_the_end
                a_stop_reaches_who_waits_for_room_in_the_next_kernel_and_every_asker
                a_reply_that_its_body_gives_up_is_counted_exactly [Context]
                a_cycle_of_kernels_that_wait_is_refused_unless_it_is_allowed
                kernels_are_connected_by_name_if_their_types_agree
                what_cannot_be_connected_is_refused_and_changes_nothing
            }
            pools {
                a_pool_takes_turns_and_its_replies_come_out_in_one_place
                a_worker_without_room_is_passed_over_while_another_has_room
                a_key_goes_to_one_worker_and_its_messages_keep_their_order
                a_pool_is_asked_as_one_kernel
                a_worker_that_failed_is_passed_over_and_the_pool_goes_on
                a_key_whose_worker_failed_is_refused_and_all_others_go_on
                a_worker_that_restarts_keeps_its_messages_and_their_order
                a_pool_ends_as_one_and_frees_its_names
                the_replies_of_a_pool_go_to_the_kernel_that_it_is_connected_to
                a_kernel_connected_to_a_pool_keeps_each_key_with_one_worker_in_order
                an_ask_passes_through_a_pool_to_the_kernel_behind_it
                a_full_pool_pauses_the_kernel_that_is_connected_to_it
                a_connected_kernel_passes_over_failed_workers_and_waits_for_a_failed_pool
                a_reply_whose_worker_failed_is_a_dead_letter_and_all_others_go_on
                a_key_that_panics_fails_the_kernel_that_replies_and_its_ask
                a_pool_connected_to_a_pool_keeps_each_key_in_order
                a_worker_is_not_connected_without_the_others
                a_cycle_through_a_pool_is_refused_unless_it_is_allowed
            }
            telemetry {
                counts_are_exact
                times_are_taken_for_the_first_message_and_every_64th
                the_times_are_those_of_the_queue_and_of_the_handler
                the_high_water_mark_is_the_deepest_that_the_mailbox_has_been
                uptime_begins_with_the_activation_and_stops_with_the_end
                the_watchdog_reports_a_stall_and_its_end
                a_stalled_kernel_is_found_while_its_mailbox_drops
                a_kernel_that_ended_is_not_stalled
                a_stall_is_counted_from_the_kernels_own_delivery_whoever_had_its_name_before
                the_runtime_tells_of_all_its_kernels_by_name
                telemetry_is_published_through_the_metrics_facade
            }
        }
    };
    (@tests $($module:ident { $($promise:ident $([$need:ident])?)* })*) => {
        $(mod $module {
            $($crate::conformance_suite! { @test $module $promise })*
        })*
    };
    (@tests_by_name $($module:ident { $($promise:ident $([$need:ident])?)* })*) => {
        $(mod $module {
            $($crate::conformance_suite! { @test $module $promise $($need)? })*
        })*
    };
    (@test $module:ident $promise:ident) => {
        #[test]
        fn $promise() {
            $crate::run(stringify!($promise), super::fixture(), $crate::$module::$promise);
        }
    };
    // What it needs is not there: see `Need::reason`.
    (@test $module:ident $promise:ident $need:ident) => {};
    (@table $($module:ident { $($promise:ident $([$need:ident])?)* })*) => {
        &[$($(Promise {
            module: stringify!($module),
            name: stringify!($promise),
            need: $crate::conformance_suite! { @need $($need)? },
            keep: $crate::$module::$promise,
        },)*)*]
    };
    (@need) => { None };
    (@need $need:ident) => { Some($crate::Need::$need) };
}

/// One promise of the suite.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    /// Where it belongs.
    pub module: &'static str,
    /// What is promised.
    pub name: &'static str,
    /// What not every executor has that it is about.
    pub need: Option<Need>,
    keep: fn(&Stage),
}

impl Promise {
    /// Tests it on a fresh stage: see [`run`].
    ///
    /// # Panics
    ///
    /// If it is not kept, or needs what kernels of this executor do not have.
    pub fn test(&self, fixture: Fixture) {
        if let Some(need) = self.need.filter(|need| !fixture.place.has(*need)) {
            panic!("{} is not for such an executor: {}", self.name, need.reason());
        }
        run(self.name, fixture, self.keep);
    }
}

/// All promises, for harnesses other than Rust's own, which [`conformance_suite!`] is for.
pub const PROMISES: &[Promise] = conformance_suite! { @list table };

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
            ("faults", include_str!("faults.rs")),
            ("restarts", include_str!("restarts.rs")),
            ("lifecycle", include_str!("lifecycle.rs")),
            ("termination", include_str!("termination.rs")),
            ("dead_letters", include_str!("dead_letters.rs")),
            ("pipelines", include_str!("pipelines.rs")),
            ("pools", include_str!("pools.rs")),
            ("telemetry", include_str!("telemetry.rs")),
        ];
        for (module, source) in modules {
            let promises = source.lines().filter_map(|line| {
                let name = line.strip_prefix("pub fn ")?.strip_suffix("(stage: &Stage) {")?;
                Some(name)
            });
            let mut count = 0;
            for promise in promises {
                let listed = |line: &str| line.split_whitespace().next() == Some(promise);
                assert!(list.lines().any(listed), "{module}::{promise}");
                count += 1;
            }
            assert!(count > 0, "{module} has promises");
        }
    }
}
