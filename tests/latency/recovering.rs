use crate::{
    latency::{
        recovery::{Recovery, Times, WINDOW, time_until_normal},
        tally::{End, Fate},
        timeline::{self, Slice},
    },
    support::{fate, ms, tally},
};

const OVERLOAD: Times = Times { begin: ms(2000), end: ms(3000) };

/// A job every 10 ms for 2 s before and 3 s after an overload of 1 s; `after` says what becomes of those after it.
fn jobs(after: impl Fn(u64) -> (u64, End)) -> Vec<Fate> {
    (0..600)
        .map(|number| 10 * number)
        .map(|due| match due {
            0..2000 => fate(due, 10, End::Answered),
            2000..3000 => fate(due, 0, End::Refused),
            _ => {
                let (latency, end) = after(due - 3000);
                fate(due, latency, end)
            }
        })
        .collect()
}

#[test]
fn a_server_that_is_never_slow_after_it_recovers_at_once() {
    assert_eq!(time_until_normal(&jobs(|_| (10, End::Answered)), OVERLOAD), Recovery::After(ms(0)));
}

#[test]
fn three_times_the_usual_is_normal_and_more_is_not() {
    assert_eq!(time_until_normal(&jobs(|_| (30, End::Answered)), OVERLOAD), Recovery::After(ms(0)));
    assert_eq!(time_until_normal(&jobs(|_| (31, End::Answered)), OVERLOAD), Recovery::Never);
}

#[test]
fn it_recovers_with_the_first_window_of_which_one_in_a_hundred_is_late() {
    let slow_for = |until: u64| jobs(move |since| (if since < until { 500 } else { 10 }, End::Answered));
    // The last of the slow jobs is the one that a p99 allows.
    assert_eq!(time_until_normal(&slow_for(500), OVERLOAD), Recovery::After(ms(490)));
    assert_eq!(time_until_normal(&slow_for(10), OVERLOAD), Recovery::After(ms(0)));
}

#[test]
fn what_is_slow_again_has_not_recovered_before() {
    let relapses = jobs(|since| (if (1200..1300).contains(&since) { 500 } else { 10 }, End::Answered));
    assert_eq!(time_until_normal(&relapses, OVERLOAD), Recovery::After(ms(1290)));
}

#[test]
fn a_quick_refusal_is_not_normal() {
    for end in [End::Refused, End::Expired, End::Failed, End::Open] {
        let refuses = jobs(|since| (1, if since < 800 { end } else { End::Answered }));
        assert_eq!(time_until_normal(&refuses, OVERLOAD), Recovery::After(ms(790)), "{end:?}");
        assert_eq!(time_until_normal(&jobs(|_| (1, end)), OVERLOAD), Recovery::Never, "{end:?}");
    }
}

#[test]
fn without_a_usual_there_is_no_normal() {
    let few: Vec<Fate> = jobs(|_| (10, End::Answered)).into_iter().filter(|job| job.due >= ms(1500)).collect();
    assert_eq!(time_until_normal(&few, OVERLOAD), Recovery::Unknown);

    let mut refused_before = jobs(|_| (10, End::Answered));
    refused_before[..10].iter_mut().for_each(|job| job.end = End::Refused);
    assert_eq!(time_until_normal(&refused_before, OVERLOAD), Recovery::Unknown);
}

#[test]
fn it_needs_a_whole_window_after_the_overload() {
    let jobs = jobs(|_| (10, End::Answered));
    let (enough, one_less) = (300 + WINDOW, 300 + WINDOW - 1);
    assert_eq!(time_until_normal(&jobs[..enough], OVERLOAD), Recovery::After(ms(0)));
    assert_eq!(time_until_normal(&jobs[..one_less], OVERLOAD), Recovery::Unknown);
    assert_eq!(time_until_normal(&[], OVERLOAD), Recovery::Unknown);
}

#[test]
fn slices_tell_the_slowest_by_its_due_time_and_count_the_refused() {
    let pings = tally(&[fate(0, 900, End::Answered), fate(1000, 3, End::Answered), fate(1099, 7, End::Answered)], 2000);
    let jobs = [fate(1150, 80, End::Answered), fate(1160, 1, End::Expired), fate(1170, 0, End::Open)];
    let slices = timeline::slices(&pings, &tally(&jobs, 2000), ms(1000), ms(350));
    let empty = Slice { ping_max_ms: None, job_max_ms: None, jobs_refused: 0 };
    assert_eq!(
        slices,
        [
            Slice { ping_max_ms: Some(7.0), ..empty },
            Slice { job_max_ms: Some(830.0), jobs_refused: 1, ..empty }, // what is open counts at its age
            empty,
        ]
    );
}

#[test]
fn slices_of_several_rounds_are_their_medians() {
    let round = |ping: Option<f64>, jobs_refused| vec![Slice { ping_max_ms: ping, job_max_ms: None, jobs_refused }];
    let median = timeline::median(&[round(Some(1.0), 0), round(Some(9.0), 4), round(Some(2.0), 1)]);
    assert_eq!(median, round(Some(2.0), 4));
    assert_eq!(timeline::median(&[round(None, 0), round(Some(3.0), 0)]), round(Some(3.0), 0));
    assert_eq!(timeline::median(&[]), []);
}
