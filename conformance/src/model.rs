//! The system as a [`stateright::Model`].

use stateright::{Model, Path, Property};

use crate::explore::Origin;
use crate::simulate::trace::Trace;
use crate::simulate::{Run, draw};
use crate::world::{Choice, Rules, World};

/// Every run that the rules allow, from one origin.
#[derive(Clone, Copy, Debug)]
pub struct Handoffs {
    /// Where runs begin.
    pub origin: Origin,
    /// What may happen in them.
    pub rules: Rules,
}

impl Model for Handoffs {
    type State = World;
    type Action = Choice;

    fn init_states(&self) -> Vec<World> {
        vec![self.origin.world(self.rules)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Choice>) {
        if world.violation().is_none() {
            actions.extend(world.choices());
        }
    }

    fn next_state(&self, world: &World, choice: Choice) -> Option<World> {
        let mut next = world.clone();
        next.step(choice, &mut |_| {});
        Some(next)
    }

    /// The path as a sequence diagram.
    fn as_svg(&self, path: Path<World, Choice>) -> Option<String> {
        let Self { origin, rules } = *self;
        let run = Run { seed: 0, origin, rules, choices: path.into_actions() };
        Some(draw::svg(&Trace::of(&run)))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("I1 to I6", |_, world: &World| world.violation().is_none())]
    }
}
