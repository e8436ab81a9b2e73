//! Explores every interleaving of the protocol of sequences with claims, fences and recovery: three
//! jobs of one key, two processes, and the transactions of clients.
//!
//! # What is modelled
//!
//! - A client inserts a job in a transaction that may stay open and may roll back. When it commits,
//!   a deferred trigger settles the key: it locks the key and makes the job a member with the next
//!   position. If the key has no head, the job is the head, and is made available; otherwise it is
//!   pending. The lock is released after the commit is visible.
//! - A process claims an available job under a new claim, works, and ends the attempt in a
//!   transaction. That locks the row and writes the end, if the claim is the current one. If the
//!   end is final, its commit settles the key: the job is no longer a member, and if there is no
//!   other head, the first member is the head and is made available.
//! - A row that another session has locked is not waited for. Its job is the head nevertheless, and
//!   is made available later.
//! - Other sessions end jobs too: a cancellation, and the recovery of a job without attempts left.
//! - A process may crash between any two steps, which rolls its transaction back.
//! - A process may judge the other one at any time: it deletes its client and then recovers its
//!   jobs. The judged process may work on, and end its attempt late. That only a process that
//!   stalled is judged is the property of the model of leases (`src/lease/model.rs`).
//!
//! Each step is atomic, and reads what is committed. Not modelled: delays, sequences that hold
//! after a failure, and limits per key.
//!
//! # Properties
//!
//! - No overlap: at most one attempt of the key works in a process whose client exists.
//! - Order: when a job is claimed, all jobs of the key that were committed before it have ended.
//! - The result of a job is written once.
//! - No key is stuck: from each state the processes can end all jobs, without another fault.
//!
//! Each other [`Variant`] breaks the protocol in one place, and one of the properties with it.
//!
//! # Why no model checker
//!
//! `stateright` has no property like the last one (its `eventually` ignores cycles), brings an HTTP
//! server, and declares no minimum version of Rust.

mod explore;

use self::explore::{Explored, Found, Model, Wrong, explore};

/// Maximum number of jobs.
const JOBS: usize = 3;
const PROCESSES: usize = 2;

/// How the protocol is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    None,
    /// The trigger at the commit of a job does not lock the key.
    NoLockAtCommit,
    /// The job gets its position when it is inserted.
    PositionAtInsertion,
    /// The trigger at the commit reads what was committed when its transaction began, like one at
    /// isolation level `REPEATABLE READ`.
    OldSnapshot,
    /// The next job is promoted in a transaction after that of the end.
    PromotionOutside,
    /// Every final end promotes the next job, even if it is not that of the head.
    PromotionByEveryEnd,
    /// A member whose row is locked is passed over.
    LockedIsPassedOver,
    /// A head whose row was locked is not made available later.
    LockedIsForgotten,
    /// A head whose row is locked is waited for. (A server ends the deadlock after a second.)
    LockedIsWaitedFor,
    /// An end is written if the job is running, under any claim.
    EndWithoutClaim,
    /// An end is written without looking at the job.
    EndWithoutState,
    /// Jobs are recovered before their client is deleted.
    RecoveryBeforeDeletion,
}

/// How many faults and actions of clients there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Faults {
    crashes: u8,
    /// Judgements of processes that have not crashed.
    judgements: u8,
    rollbacks: u8,
    /// Attempts that fail and are retried.
    retries: u8,
    /// Cancelled jobs.
    cancels: u8,
    /// Recovered jobs that have no attempt left.
    exhausted: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum JobState {
    /// Its transaction has not begun, is open, or was rolled back.
    Absent,
    Pending,
    Available,
    Running,
    Final,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Insert {
    NotBegun,
    /// `has_head`: for [`Variant::OldSnapshot`].
    Open {
        has_head: bool,
    },
    /// The trigger has run.
    Settled {
        is_head: bool,
    },
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Job {
    insert: Insert,
    state: JobState,
    member: Member,
    /// Position in the sequence, 0 before it has one.
    position: u8,
    /// Rank of its commit, 0 before it.
    committed: u8,
    /// The client that has claimed it, while it is running.
    client: Client,
    results: u8,
    /// The transaction that has changed the row.
    row_lock: Option<Session>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Member {
    No,
    Waiting,
    Head,
    /// It is the head, but its row was locked, so it is still pending.
    Skipped,
}

/// The client of a claim. A process has at most one that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Client {
    /// It exists, and its process runs.
    Of(usize),
    /// It exists, and its process has crashed.
    Crashed,
    Deleted,
}

/// A session that locks rows and the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Session {
    /// Inserts this job.
    Insert(usize),
    Process(usize),
    /// Cancels a job, or recovers one that has no attempt left.
    Other,
}

/// A transaction that ends a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct End {
    job: usize,
    /// `false`: it makes the job available for a retry.
    is_final: bool,
    has_result: bool,
    stage: EndStage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum EndStage {
    /// The row is locked.
    Updated,
    /// The trigger has locked the key.
    Settling,
    /// [`Variant::PromotionOutside`]: the end is committed.
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Process {
    state: ProcessState,
    attempt: Option<Attempt>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum ProcessState {
    /// It has a client that exists.
    Member,
    /// Its client was deleted, which it does not know.
    Judged,
    Crashed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Attempt {
    job: usize,
    /// `true` if the client that made the claim exists.
    has_client: bool,
    /// `true` if its claim is the one in the row of the job. Instead of numbers, of which there
    /// would be ever more states.
    is_current: bool,
    stage: AttemptStage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum AttemptStage {
    /// The end is not in the row yet.
    Working,
    Ending(End),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    jobs: [Job; JOBS],
    processes: [Process; PROCESSES],
    other: Option<End>,
    key_lock: Option<Session>,
    /// `true` if a client exists whose process has crashed.
    has_crashed_client: bool,
    last_position: u8,
    commits: u8,
    /// Claimed before a job that was committed earlier had ended.
    is_out_of_order: bool,
    left: Faults,
}

/// Steps of the process with the first number, of which the last number is the job.
#[derive(Debug, Clone, Copy)]
#[expect(dead_code, reason = "numbers are printed in traces")]
enum Step {
    Insert(usize),
    Settle(usize),
    Commit(usize),
    RollBack(usize),
    Claim(usize, usize),
    DiscardEnd(usize, usize),
    UpdateEnd(usize, usize),
    UpdateFailure(usize, usize),
    LockKey(Session, usize),
    CommitEnd(Session, usize),
    PromoteOutside(Session, usize),
    /// Makes a head available whose row was locked.
    MakeAvailable(usize),
    UpdateLost(usize),
    UpdateCancelled(usize),
    RollBackOther(usize),
    Crash(usize),
    Restart(usize),
    /// The process learns that it was judged, and gets a new client.
    ReplaceClient(usize),
    JudgeCrashed,
    JudgeLive(usize),
    Recover(usize),
}

#[derive(Debug, PartialEq, Eq)]
enum Violation {
    Overlap,
    Order,
    ResultTwice,
}

impl State {
    fn new(left: Faults) -> Self {
        let job = Job {
            insert: Insert::NotBegun,
            state: JobState::Absent,
            member: Member::No,
            position: 0,
            committed: 0,
            client: Client::Deleted,
            results: 0,
            row_lock: None,
        };
        let process = Process { state: ProcessState::Member, attempt: None };
        Self {
            jobs: [job; JOBS],
            processes: [process; PROCESSES],
            other: None,
            key_lock: None,
            has_crashed_client: false,
            last_position: 0,
            commits: 0,
            is_out_of_order: false,
            left,
        }
    }

    /// Returns `true` if a job other than `except` is the head.
    fn has_head(&self, except: usize) -> bool {
        let is_head = |job: &Job| matches!(job.member, Member::Head | Member::Skipped);
        self.jobs.iter().enumerate().any(|(index, job)| index != except && is_head(job))
    }

    /// Replaces a client that existed.
    fn change_clients(&mut self, from: Client, to: Client) {
        for job in self.jobs.iter_mut().filter(|job| job.state == JobState::Running && job.client == from) {
            job.client = to;
        }
    }

    /// Releases the locks of a session.
    fn release(&mut self, session: Session) {
        if self.key_lock == Some(session) {
            self.key_lock = None;
        }
        for job in &mut self.jobs {
            if job.row_lock == Some(session) {
                job.row_lock = None;
            }
        }
    }

    /// Returns `true` if a process may judge this client.
    fn has_judge(&self, client: Client) -> bool {
        let may_judge = |(number, process): (usize, &Process)| {
            process.state == ProcessState::Member && client != Client::Of(number)
        };
        self.processes.iter().enumerate().any(may_judge)
    }

    /// Changes or removes the transaction of a session that ends a job.
    fn set_end(&mut self, session: Session, end: Option<End>) {
        match session {
            Session::Insert(_) => {}
            Session::Other => self.other = end,
            Session::Process(number) => {
                let attempt = self.processes[number].attempt;
                let ending = |attempt, end| Attempt { stage: AttemptStage::Ending(end), ..attempt };
                self.processes[number].attempt = attempt.zip(end).map(|(attempt, end)| ending(attempt, end));
            }
        }
    }

    /// Makes the claims on a job obsolete.
    fn end_claims(&mut self, job: usize) {
        self.jobs[job].client = Client::Deleted;
        for attempt in self.processes.iter_mut().filter_map(|process| process.attempt.as_mut()) {
            attempt.is_current &= attempt.job != job;
        }
    }

    /// Sets values that no longer matter to one value, so that there are fewer states.
    fn forget(&mut self) {
        for job in self.jobs.iter_mut().filter(|job| job.state == JobState::Final) {
            (job.position, job.committed) = (0, 0);
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Sequence {
    variant: Variant,
    jobs: usize,
    faults: Faults,
}

impl Sequence {
    fn insert_steps(&self, state: &State, index: usize, add: &mut impl FnMut(Step, State)) {
        let job = state.jobs[index];
        let session = Session::Insert(index);
        let mut change = |step: Step, change: &dyn Fn(&mut State)| {
            let mut next = state.clone();
            change(&mut next);
            add(step, next);
        };
        match job.insert {
            // Jobs are alike, so they are inserted in their order.
            Insert::NotBegun if index == 0 || state.jobs[index - 1].insert != Insert::NotBegun => {
                change(Step::Insert(index), &|next| {
                    next.jobs[index].insert = Insert::Open { has_head: next.has_head(index) };
                    if self.variant == Variant::PositionAtInsertion {
                        next.last_position += 1;
                        next.jobs[index].position = next.last_position;
                    }
                });
            }
            Insert::NotBegun | Insert::Over => {}
            Insert::Open { has_head } => {
                let needs_lock = self.variant != Variant::NoLockAtCommit;
                if !needs_lock || state.key_lock.is_none() {
                    change(Step::Settle(index), &|next| {
                        if needs_lock {
                            next.key_lock = Some(session);
                        }
                        if self.variant != Variant::PositionAtInsertion {
                            next.last_position += 1;
                            next.jobs[index].position = next.last_position;
                        }
                        let is_old = self.variant == Variant::OldSnapshot;
                        let is_head = if is_old { !has_head } else { !next.has_head(index) };
                        next.jobs[index].insert = Insert::Settled { is_head };
                    });
                }
            }
            Insert::Settled { is_head } => change(Step::Commit(index), &|next| {
                let (state, member) =
                    if is_head { (JobState::Available, Member::Head) } else { (JobState::Pending, Member::Waiting) };
                next.commits += 1;
                next.jobs[index] =
                    Job { insert: Insert::Over, state, member, committed: next.commits, ..next.jobs[index] };
                next.release(session);
            }),
        }
        let is_open = matches!(job.insert, Insert::Open { .. } | Insert::Settled { .. });
        if is_open && state.left.rollbacks > 0 {
            change(Step::RollBack(index), &|next| {
                next.left.rollbacks -= 1;
                next.jobs[index].insert = Insert::Over;
                next.jobs[index].position = 0;
                next.release(session);
            });
        }
    }

    fn process_steps(&self, state: &State, number: usize, add: &mut impl FnMut(Step, State)) {
        let process = state.processes[number];
        let session = Session::Process(number);
        let mut change = |step: Step, change: &dyn Fn(&mut State)| {
            let mut next = state.clone();
            change(&mut next);
            next.forget();
            add(step, next);
        };
        if process.state == ProcessState::Crashed {
            return change(Step::Restart(number), &|next| next.processes[number].state = ProcessState::Member);
        }
        if state.left.crashes > 0 {
            change(Step::Crash(number), &|next| {
                next.left.crashes -= 1;
                next.processes[number] = Process { state: ProcessState::Crashed, attempt: None };
                next.has_crashed_client |= process.state == ProcessState::Member;
                next.change_clients(Client::Of(number), Client::Crashed);
                next.release(session);
            });
        }
        if process.state == ProcessState::Judged {
            change(Step::ReplaceClient(number), &|next| next.processes[number].state = ProcessState::Member);
        }
        let Some(attempt) = process.attempt else {
            // Also if the client was deleted, until the process learns of it.
            for (index, job) in state.jobs.iter().enumerate() {
                if job.state == JobState::Available && job.row_lock.is_none() {
                    change(Step::Claim(number, index), &|next| {
                        let is_early = |other: &Job| {
                            !matches!(other.state, JobState::Absent | JobState::Final)
                                && other.committed < job.committed
                        };
                        next.is_out_of_order |= state.jobs.iter().any(is_early);
                        next.end_claims(index);
                        let has_client = process.state == ProcessState::Member;
                        let client = if has_client { Client::Of(number) } else { Client::Deleted };
                        next.jobs[index] = Job { state: JobState::Running, client, ..*job };
                        let stage = AttemptStage::Working;
                        let attempt = Attempt { job: index, has_client, is_current: true, stage };
                        next.processes[number].attempt = Some(attempt);
                    });
                }
            }
            return;
        };
        let index = attempt.job;
        match attempt.stage {
            AttemptStage::Working => {
                let job = state.jobs[index];
                if job.row_lock.is_some() {
                    return;
                }
                let is_running = job.state == JobState::Running;
                let is_written = match self.variant {
                    Variant::EndWithoutState => true,
                    Variant::EndWithoutClaim => is_running,
                    _ => is_running && attempt.is_current,
                };
                if !is_written {
                    return change(Step::DiscardEnd(number, index), &|next| next.processes[number].attempt = None);
                }
                let update = |next: &mut State, is_final| {
                    next.jobs[index].row_lock = Some(session);
                    let end = End { job: index, is_final, has_result: true, stage: EndStage::Updated };
                    let stage = AttemptStage::Ending(end);
                    next.processes[number].attempt = Some(Attempt { stage, ..attempt });
                };
                change(Step::UpdateEnd(number, index), &|next| update(next, true));
                if state.left.retries > 0 {
                    change(Step::UpdateFailure(number, index), &|next| {
                        next.left.retries -= 1;
                        update(next, false);
                    });
                }
            }
            AttemptStage::Ending(end) => self.end_steps(state, session, end, add),
        }
    }

    /// The steps of a transaction that ends a job.
    fn end_steps(&self, state: &State, session: Session, end: End, add: &mut impl FnMut(Step, State)) {
        let job = end.job;
        let mut change = |step: Step, change: &dyn Fn(&mut State)| {
            let mut next = state.clone();
            change(&mut next);
            next.forget();
            add(step, next);
        };
        let write = |next: &mut State| {
            next.end_claims(job);
            next.jobs[job].state = if end.is_final { JobState::Final } else { JobState::Available };
            if end.is_final {
                next.jobs[job].member = Member::No;
                next.jobs[job].results += u8::from(end.has_result);
            }
        };
        let is_locked = |job: usize| state.jobs[job].row_lock.is_some_and(|holder| holder != session);
        match end.stage {
            EndStage::Updated if !end.is_final => change(Step::CommitEnd(session, job), &|next| {
                write(next);
                next.release(session);
                next.set_end(session, None);
            }),
            EndStage::Updated if self.variant == Variant::PromotionOutside => {
                change(Step::CommitEnd(session, job), &|next| {
                    write(next);
                    next.release(session);
                    next.set_end(session, Some(End { stage: EndStage::Ended, ..end }));
                });
            }
            EndStage::Updated if state.key_lock.is_none() => change(Step::LockKey(session, job), &|next| {
                next.key_lock = Some(session);
                next.set_end(session, Some(End { stage: EndStage::Settling, ..end }));
            }),
            EndStage::Updated => {}
            EndStage::Settling | EndStage::Ended => {
                let head = self.head_after(state, job);
                if self.variant == Variant::LockedIsWaitedFor && head.is_some_and(is_locked) {
                    return;
                }
                let is_outside = end.stage == EndStage::Ended;
                let step = if is_outside { Step::PromoteOutside } else { Step::CommitEnd };
                change(step(session, job), &|next| {
                    if !is_outside {
                        write(next);
                    }
                    match head {
                        Some(head) if is_locked(head) => next.jobs[head].member = Member::Skipped,
                        Some(head) => {
                            (next.jobs[head].state, next.jobs[head].member) = (JobState::Available, Member::Head);
                        }
                        None => {}
                    }
                    next.release(session);
                    next.set_end(session, None);
                });
            }
        }
    }

    /// Returns the member that is the head once `ended` is not, if that changes.
    fn head_after(&self, state: &State, ended: usize) -> Option<usize> {
        if self.variant != Variant::PromotionByEveryEnd && state.has_head(ended) {
            return None;
        }
        let is_passed = |job: &Job| self.variant == Variant::LockedIsPassedOver && job.row_lock.is_some();
        let members = state.jobs.iter().enumerate();
        let waiting =
            members.filter(|(index, job)| *index != ended && job.member == Member::Waiting && !is_passed(job));
        waiting.min_by_key(|(_, job)| job.position).map(|(index, _)| index)
    }

    /// The steps of the recovery and of cancellations.
    fn other_steps(&self, state: &State, add: &mut impl FnMut(Step, State)) {
        let mut change = |step: Step, change: &dyn Fn(&mut State)| {
            let mut next = state.clone();
            change(&mut next);
            next.forget();
            add(step, next);
        };
        if state.has_crashed_client && state.has_judge(Client::Crashed) {
            change(Step::JudgeCrashed, &|next| {
                next.has_crashed_client = false;
                next.change_clients(Client::Crashed, Client::Deleted);
            });
        }
        for (number, process) in state.processes.iter().enumerate() {
            let may_be_judged = process.state == ProcessState::Member && state.left.judgements > 0;
            if may_be_judged && state.has_judge(Client::Of(number)) {
                change(Step::JudgeLive(number), &|next| {
                    next.left.judgements -= 1;
                    next.processes[number].state = ProcessState::Judged;
                    if let Some(attempt) = &mut next.processes[number].attempt {
                        attempt.has_client = false;
                    }
                    next.change_clients(Client::Of(number), Client::Deleted);
                });
            }
        }
        for (index, job) in state.jobs.iter().enumerate().filter(|(_, job)| job.row_lock.is_none()) {
            let has_client = job.client != Client::Deleted;
            let is_early = self.variant == Variant::RecoveryBeforeDeletion && state.left.judgements > 0;
            let is_lost = job.state == JobState::Running && (!has_client || is_early) && state.has_judge(job.client);
            if is_lost {
                change(Step::Recover(index), &|next| {
                    next.left.judgements -= u8::from(has_client);
                    next.jobs[index].state = JobState::Available;
                    next.end_claims(index);
                });
            }
            if state.other.is_some() {
                continue;
            }
            let update = |next: &mut State| {
                next.jobs[index].row_lock = Some(Session::Other);
                next.other = Some(End { job: index, is_final: true, has_result: false, stage: EndStage::Updated });
            };
            if is_lost && state.left.exhausted > 0 {
                change(Step::UpdateLost(index), &|next| {
                    next.left.exhausted -= 1;
                    update(next);
                });
            }
            if matches!(job.state, JobState::Pending | JobState::Available) && state.left.cancels > 0 {
                change(Step::UpdateCancelled(index), &|next| {
                    next.left.cancels -= 1;
                    update(next);
                });
            }
        }
        for (index, job) in state.jobs.iter().enumerate().filter(|(_, job)| job.row_lock.is_none()) {
            if job.member == Member::Skipped && state.key_lock.is_none() && self.variant != Variant::LockedIsForgotten {
                change(Step::MakeAvailable(index), &|next| {
                    (next.jobs[index].state, next.jobs[index].member) = (JobState::Available, Member::Head);
                });
            }
        }
        let Some(end) = state.other else { return };
        if state.left.rollbacks > 0 {
            change(Step::RollBackOther(end.job), &|next| {
                next.left.rollbacks -= 1;
                next.release(Session::Other);
                next.other = None;
            });
        }
        self.end_steps(state, Session::Other, end, add);
    }
}

impl Model for Sequence {
    type State = State;
    type Step = Step;
    type Violation = Violation;

    fn initial(&self) -> State {
        State::new(self.faults)
    }

    fn steps(&self, state: &State, mut add: impl FnMut(Step, State)) {
        for index in 0..self.jobs {
            self.insert_steps(state, index, &mut add);
        }
        for number in 0..PROCESSES {
            self.process_steps(state, number, &mut add);
        }
        self.other_steps(state, &mut add);
    }

    fn violation(&self, state: &State) -> Option<Violation> {
        let works = |process: &&Process| {
            let attempt = process.attempt.filter(|attempt| attempt.stage == AttemptStage::Working);
            attempt.is_some_and(|attempt| attempt.has_client)
        };
        if state.is_out_of_order {
            Some(Violation::Order)
        } else if state.processes.iter().filter(works).count() > 1 {
            Some(Violation::Overlap)
        } else if state.jobs.iter().any(|job| job.results > 1) {
            Some(Violation::ResultTwice)
        } else {
            None
        }
    }

    fn is_done(&self, state: &State) -> bool {
        let is_over = |job: &Job| matches!(job.state, JobState::Absent | JobState::Final);
        state.jobs.iter().all(is_over)
    }

    fn is_certain(&self, step: Step) -> bool {
        !matches!(
            step,
            Step::Insert(_)
                | Step::Settle(_)
                | Step::RollBack(_)
                | Step::UpdateFailure(..)
                | Step::Crash(_)
                | Step::JudgeLive(_)
                | Step::UpdateLost(_)
                | Step::UpdateCancelled(_)
                | Step::RollBackOther(_)
        )
    }
}

const NONE: Faults = Faults { crashes: 0, judgements: 0, rollbacks: 0, retries: 0, cancels: 0, exhausted: 0 };

/// Numbers of jobs, and faults that happen together.
const FEW: [(usize, Faults); 6] = [
    (3, Faults { crashes: 1, ..NONE }),
    (3, Faults { judgements: 1, ..NONE }),
    (3, Faults { rollbacks: 1, cancels: 1, ..NONE }),
    (2, Faults { crashes: 1, judgements: 1, retries: 1, ..NONE }),
    (2, Faults { judgements: 1, cancels: 1, exhausted: 1, ..NONE }),
    (2, Faults { crashes: 1, rollbacks: 1, cancels: 1, exhausted: 1, ..NONE }),
];

/// Like [`FEW`].
const MANY: [(usize, Faults); 4] = [
    (3, Faults { crashes: 2, rollbacks: 1, retries: 1, exhausted: 1, ..NONE }),
    (3, Faults { judgements: 2, retries: 1, cancels: 1, ..NONE }),
    (3, Faults { crashes: 1, judgements: 1, cancels: 1, exhausted: 1, ..NONE }),
    (3, Faults { crashes: 1, rollbacks: 2, retries: 1, cancels: 2, ..NONE }),
];

/// Explores a variant of the protocol, and prints the trace of a violation.
fn explored(variant: Variant, jobs: usize, faults: Faults) -> Explored<Violation> {
    let explored = explore(&Sequence { variant, jobs, faults });
    println!("{variant:?}, {jobs} jobs, {faults:?}: {} states", explored.states);
    if let Some(Found { what, trace }) = &explored.found {
        println!("{what:?} after {}", trace.join(", "));
    }
    explored
}

#[test]
fn sequences_keep_their_properties_in_every_interleaving() {
    for (jobs, faults) in FEW {
        assert!(explored(Variant::None, jobs, faults).found.is_none());
    }
}

#[test]
#[ignore = "takes a minute"]
fn sequences_keep_their_properties_with_many_faults() {
    for (jobs, faults) in MANY {
        assert!(explored(Variant::None, jobs, faults).found.is_none());
    }
}

/// Asserts that the variant violates a property with these faults, and the protocol does not.
fn assert_broken(variant: Variant, jobs: usize, faults: Faults, expected: &Wrong<Violation>) {
    let found = explored(variant, jobs, faults).found;
    assert_eq!(found.as_ref().map(|found| &found.what), Some(expected));
    assert!(explored(Variant::None, jobs, faults).found.is_none(), "the faults alone do no harm");
}

#[test]
fn without_a_lock_at_the_commit_two_jobs_become_heads() {
    assert_broken(Variant::NoLockAtCommit, 2, NONE, &Wrong::State(Violation::Order));
}

#[test]
fn positions_at_the_insertion_are_not_in_the_order_of_the_commits() {
    assert_broken(Variant::PositionAtInsertion, 3, NONE, &Wrong::State(Violation::Order));
}

#[test]
fn a_commit_with_an_old_snapshot_does_not_see_the_head() {
    assert_broken(Variant::OldSnapshot, 2, NONE, &Wrong::State(Violation::Order));
}

#[test]
fn a_crash_before_a_promotion_of_its_own_leaves_the_key_stuck() {
    let faults = Faults { crashes: 1, ..NONE };
    assert_broken(Variant::PromotionOutside, 2, faults, &Wrong::Stuck);
}

/// Without a crash, the job that commits in between overtakes the job that was to be promoted.
#[test]
fn a_promotion_of_its_own_is_out_of_order_with_a_commit() {
    assert_broken(Variant::PromotionOutside, 3, NONE, &Wrong::State(Violation::Order));
}

#[test]
fn a_cancelled_job_that_promotes_another_overtakes_the_head() {
    let faults = Faults { cancels: 1, ..NONE };
    assert_broken(Variant::PromotionByEveryEnd, 3, faults, &Wrong::State(Violation::Order));
}

#[test]
fn a_member_that_is_passed_over_because_its_row_is_locked_is_overtaken() {
    let faults = Faults { cancels: 1, rollbacks: 1, ..NONE };
    assert_broken(Variant::LockedIsPassedOver, 3, faults, &Wrong::State(Violation::Order));
}

#[test]
fn a_head_whose_row_was_locked_must_be_made_available_later() {
    let faults = Faults { cancels: 1, rollbacks: 1, ..NONE };
    assert_broken(Variant::LockedIsForgotten, 2, faults, &Wrong::Stuck);
}

/// The promotion has locked the key and waits for the row, and the cancellation the other way
/// round.
#[test]
fn a_promotion_that_waits_for_a_row_can_deadlock() {
    let faults = Faults { cancels: 1, ..NONE };
    assert_broken(Variant::LockedIsWaitedFor, 2, faults, &Wrong::Stuck);
}

#[test]
fn a_late_end_without_its_claim_lets_the_next_job_overlap() {
    let faults = Faults { judgements: 1, ..NONE };
    assert_broken(Variant::EndWithoutClaim, 2, faults, &Wrong::State(Violation::Overlap));
}

#[test]
fn a_late_end_of_a_job_that_has_ended_writes_a_second_result() {
    let faults = Faults { judgements: 1, ..NONE };
    assert_broken(Variant::EndWithoutState, 1, faults, &Wrong::State(Violation::ResultTwice));
}

#[test]
fn recovery_before_the_client_is_deleted_lets_attempts_overlap() {
    let faults = Faults { judgements: 1, ..NONE };
    assert_broken(Variant::RecoveryBeforeDeletion, 1, faults, &Wrong::State(Violation::Overlap));
}
