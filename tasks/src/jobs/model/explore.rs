//! Explores every state that a model can reach, breadth first.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt::Debug,
    hash::Hash,
};

/// A system of states and steps.
pub(super) trait Model {
    type State: Clone + Eq + Hash;
    type Step: Copy + Debug;
    type Violation: Debug;

    fn initial(&self) -> Self::State;

    /// Calls `add` with every step that may be next, and the state after it.
    fn steps(&self, state: &Self::State, add: impl FnMut(Self::Step, Self::State));

    /// Returns what is wrong with a state.
    fn violation(&self, state: &Self::State) -> Option<Self::Violation>;

    /// Returns `true` if all work that was accepted is done.
    fn is_done(&self, state: &Self::State) -> bool;

    /// Returns `true` if the system takes the step by itself, once it is possible. Faults, and what
    /// clients do, may never happen.
    fn is_certain(&self, step: Self::Step) -> bool;
}

/// Result of [`explore`].
#[derive(Debug)]
pub(super) struct Explored<V> {
    /// Number of states.
    pub(super) states: usize,
    pub(super) found: Option<Found<V>>,
}

#[derive(Debug)]
pub(super) struct Found<V> {
    pub(super) what: Wrong<V>,
    /// The shortest sequence of steps to it.
    pub(super) trace: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wrong<V> {
    State(V),
    /// Work that was accepted is not done, and the steps that the system takes by itself no longer
    /// lead to its end.
    Stuck,
}

/// Returns the violation with the shortest trace, if there is one. States are searched for
/// violations before they are searched for one that is stuck.
pub(super) fn explore<M: Model>(model: &M) -> Explored<M::Violation> {
    let mut graph = Graph { indexes: HashMap::new(), states: Vec::new(), parents: Vec::new() };
    // For each state, those from which a certain step leads to it.
    let mut before: Vec<Vec<u32>> = Vec::new();
    graph.add(model.initial(), None);
    let mut next = 0;
    while let Some(state) = graph.states.get(next).cloned() {
        if let Some(violation) = model.violation(&state) {
            let found = Some(Found { what: Wrong::State(violation), trace: graph.trace(next) });
            return Explored { states: graph.states.len(), found };
        }
        model.steps(&state, |step, after| {
            let index = graph.add(after, Some((next, step)));
            before.resize_with(graph.states.len(), Vec::new);
            if model.is_certain(step) {
                before[index].push(next as u32);
            }
        });
        next += 1;
    }
    before.resize_with(graph.states.len(), Vec::new);
    // Backwards from the states in which everything is done.
    let mut can_end: Vec<bool> = graph.states.iter().map(|state| model.is_done(state)).collect();
    let mut open: Vec<usize> = (0..can_end.len()).filter(|index| can_end[*index]).collect();
    while let Some(index) = open.pop() {
        for previous in &before[index] {
            let previous = *previous as usize;
            if !std::mem::replace(&mut can_end[previous], true) {
                open.push(previous);
            }
        }
    }
    let stuck = can_end.iter().position(|can_end| !can_end);
    let found = stuck.map(|index| Found { what: Wrong::Stuck, trace: graph.trace(index) });
    Explored { states: graph.states.len(), found }
}

struct Graph<S, T> {
    indexes: HashMap<S, usize>,
    /// In the order of their distances from the initial state.
    states: Vec<S>,
    /// For each state, the first one from which it was reached, and the step.
    parents: Vec<Option<(usize, T)>>,
}

impl<S: Clone + Eq + Hash, T: Copy + Debug> Graph<S, T> {
    /// Returns the index of a state, which may be known.
    fn add(&mut self, state: S, parent: Option<(usize, T)>) -> usize {
        match self.indexes.entry(state) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                let index = self.states.len();
                self.states.push(entry.key().clone());
                self.parents.push(parent);
                *entry.insert(index)
            }
        }
    }

    fn trace(&self, index: usize) -> Vec<String> {
        let steps = std::iter::successors(self.parents[index], |(parent, _)| self.parents[*parent]);
        let mut trace: Vec<_> = steps.map(|(_, step)| format!("{step:?}")).collect();
        trace.reverse();
        trace
    }
}
