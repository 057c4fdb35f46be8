//! The adversary table: whoever does not play by the rules, as values. A cast of any two of them is a game; [`crate::table`] plays it before
//! the contracts in memory, and a liar's [`argument`](Actor::argument) starts the same node as a process.

use std::fmt;

use sworn_watcher::game::Kind;

/// How a node plays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Node {
    /// answers everything
    Answers,
    /// answers openings up to this depth of the descent
    AnswersUpTo(Kind),
    /// answers nothing
    Silent,
}

/// What a node shows over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shows {
    /// what it has committed to
    Committed,
    /// nothing
    Nothing,
    /// an honest execution's trace
    Another,
}

macro_rules! tricks {
    ($($name:ident: $what:literal,)*) => {
        /// What somebody tries though the rules forbid it; it must be refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Trick {
            $(#[doc = $what] $name,)*
        }

        impl Trick {
            /// All of them.
            pub const ALL: &[Trick] = &[$(Trick::$name,)*];

            /// In words.
            pub const fn what(self) -> &'static str {
                match self {
                    $(Trick::$name => $what,)*
                }
            }
        }
    };
}

tricks! {
    AnswersLate: "an answer a second late",
    AnswersGarbage: "an answer that was not committed to",
    AnswersPartly: "a part of an answer",
    AnswersAtAnotherLength: "another length than was demanded",
    AnswersTwice: "a second answer",
    AnswersForAnother: "operators told by somebody else",
    SubmitsTwice: "a second result",
    TakesPayEarly: "pay before the end",
    TakesPayAfterTheEnd: "pay after the end",
    LeavesEarly: "a stake that is bound",
    AcceptsTwice: "a job taken twice",
    TimesOutEarly: "a timeout in the last second of the turn",
    DemandsTwice: "the same demand again",
    DemandsAnotherNode: "another node than was committed to",
    DemandsAfterTheEnd: "a demand after the end",
    ProvesUnannounced: "a proof that was not announced",
    ProvesHastily: "a proof in the block of its announcement",
    ProvesSomethingElse: "a proof of something else",
    CopiesAProof: "a copied proof",
    ProvesTwice: "a second proof",
    SlashesTwice: "a second slash",
    TakesTheRewardEarly: "the reward before the contest is over",
    TakesTheRewardTwice: "the reward twice",
    TakesAnothersReward: "the reward of an announcement that is another's",
    TakesFeesTwice: "fees twice",
    CancelsLate: "a job taken back",
    ExpiresAnAnswer: "late, though it is answered",
    ExpiresAfterTheEnd: "late after the end",
    Underpays: "a ceiling below the node's price",
    AsksNothing: "a prompt without tokens",
    AsksTooMuch: "more tokens than the node offers",
    AsksRaggedly: "a prompt that ends within a token",
    AsksForNoToken: "an answer without tokens",
    AsksAnUnknownModel: "a model that is not registered",
}

/// Somebody who does not play by the rules, or plays them against others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Actor {
    /// A node that has committed to a wrong element.
    Liar(Node, Shows),
    /// Pays for demands of anything, and announces what it cannot prove, as long as the rules allow.
    Flooder,
    /// Tries this whenever it can.
    Tries(Trick),
}

impl Actor {
    /// All of them.
    pub fn all() -> Vec<Actor> {
        let nodes = [
            (Node::Answers, Shows::Committed),
            (Node::Answers, Shows::Nothing),
            (Node::Answers, Shows::Another),
            (Node::Silent, Shows::Committed),
            (Node::Silent, Shows::Nothing),
            (Node::AnswersUpTo(Kind::Layers), Shows::Nothing),
            (Node::AnswersUpTo(Kind::Positions), Shows::Nothing),
            (Node::AnswersUpTo(Kind::OpList), Shows::Nothing),
        ];
        let liars = nodes.into_iter().map(|(node, shows)| Actor::Liar(node, shows));
        liars.chain([Actor::Flooder]).chain(Trick::ALL.iter().map(|t| Actor::Tries(*t))).collect()
    }

    /// What `sworn-liar --lie` takes for a node that plays so, after the name of what it lies about; none: it is no node.
    pub fn argument(self) -> Option<&'static str> {
        let Actor::Liar(node, shows) = self else { return None };
        Some(match (node, shows) {
            (Node::Answers, Shows::Committed) => "+open",
            (Node::Answers, Shows::Nothing) => "+interactive",
            (Node::Answers, Shows::Another) => "+second-story",
            (Node::Silent, Shows::Committed) => "+mute",
            (Node::Silent, _) => "+withhold",
            (Node::AnswersUpTo(Kind::Layers), _) => "+withhold:positions",
            (Node::AnswersUpTo(Kind::Positions), _) => "+withhold:oplist",
            (Node::AnswersUpTo(_), _) => "+withhold:pages",
        })
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::Liar(node, shows) => write!(f, "a liar ({node:?}, shows {shows:?})"),
            Actor::Flooder => f.write_str("a flooder"),
            Actor::Tries(trick) => write!(f, "somebody who tries {}", trick.what()),
        }
    }
}

/// Who is in a game.
#[derive(Clone, Debug, PartialEq)]
pub struct Cast {
    /// How the node plays and what it shows, if it lies.
    pub liar: Option<(Node, Shows)>,
    /// Whether somebody floods.
    pub flooded: bool,
    /// What others try.
    pub tricks: Vec<Trick>,
}

impl Cast {
    /// These; of two liars the first has the game's node.
    pub fn of(actors: &[Actor]) -> Self {
        let mut cast = Cast { liar: None, flooded: false, tricks: Vec::new() };
        for actor in actors {
            match *actor {
                Actor::Liar(node, shows) => cast.liar = cast.liar.or(Some((node, shows))),
                Actor::Flooder => cast.flooded = true,
                Actor::Tries(trick) => cast.tricks.push(trick),
            }
        }
        cast
    }
}
