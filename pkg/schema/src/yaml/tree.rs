//! The nodes of a document: the grammar of its tokens.

use super::YamlError;
use super::scan::{Placed, Scanned, Scanner, Token};
use std::collections::HashMap;

/// A node's place in its [`Tree`].
pub(super) type Id = usize;

pub(super) struct Node {
    /// Counted from zero.
    pub line: u64,
    pub content: Content,
}

pub(super) enum Content {
    Scalar(Scalar),
    Sequence(Vec<Id>),
    /// Keys and values in turns.
    Mapping(Vec<Id>),
    Alias {
        anchor: String,
        of: Id,
    },
}

/// A scalar before it is resolved.
#[derive(Default)]
pub(super) struct Scalar {
    /// Empty where none is written.
    pub tag: String,
    pub text: String,
    /// Whether what it is follows from how it looks.
    pub plain: bool,
}

#[derive(Default)]
pub(super) struct Tree {
    pub nodes: Vec<Node>,
    /// None of a text without a document.
    pub root: Option<Id>,
}

/// Reads the first document.
pub(super) fn read(text: &str, limit: usize) -> Result<Tree, YamlError> {
    let mut grammar = Grammar {
        tokens: Scanner::new(text, limit),
        tree: Tree::default(),
        anchors: HashMap::new(),
        tags: Vec::new(),
        depth: 0,
        limit,
    };
    grammar.document()?;
    Ok(grammar.tree)
}

struct Grammar {
    tokens: Scanner,
    tree: Tree,
    anchors: HashMap<String, Id>,
    /// Handles of tags and what they stand for.
    tags: Vec<(String, String)>,
    depth: usize,
    limit: usize,
}

/// What may stand in front of a node.
#[derive(Default)]
struct Properties {
    anchor: Option<String>,
    tag: String,
}

/// Where a node stands, which says what it may be.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Block,
    /// As a key or value of a block mapping, where a sequence need not be indented.
    BlockEntry,
    Flow,
}

impl Grammar {
    fn peek(&mut self) -> Scanned<&Token> {
        self.tokens.peek().map(|p| &p.token)
    }

    fn line(&mut self) -> Scanned<u64> {
        self.tokens.peek().map(|p| p.line)
    }

    /// Takes the next token if it is this one.
    fn takes(&mut self, token: &Token) -> Scanned<bool> {
        let is = self.peek()? == token;
        if is {
            self.tokens.skip_token();
        }
        Ok(is)
    }

    /// Upstream's parser shows lines counted from zero.
    fn error<T>(&mut self, problem: &str) -> Scanned<T> {
        let line = self.line()?;
        Err(YamlError::at(line, problem))
    }

    fn document(&mut self) -> Scanned {
        let explicit = match self.peek()? {
            Token::StreamEnd => return Ok(()),
            Token::Version(..) | Token::TagDirective { .. } | Token::DocumentStart => true,
            _ => false,
        };
        self.directives()?;
        if explicit && !self.takes(&Token::DocumentStart)? {
            return self.error("did not find expected <document start>");
        }
        let ends = matches!(
            self.peek()?,
            Token::Version(..)
                | Token::TagDirective { .. }
                | Token::DocumentStart
                | Token::DocumentEnd
                | Token::StreamEnd
        );
        let root = if explicit && ends { self.empty()? } else { self.node(Place::Block)? };
        self.tree.root = Some(root);
        // What comes next may be no token at all.
        self.peek().map(drop)
    }

    fn directives(&mut self) -> Scanned {
        let mut version = false;
        loop {
            let line = self.line()?;
            match self.peek()?.clone() {
                Token::Version(..) if version => return self.error("found duplicate %YAML directive"),
                Token::Version(1, 1) => version = true,
                Token::Version(..) => return self.error("found incompatible YAML document"),
                Token::TagDirective { handle, prefix } => {
                    if self.tags.iter().any(|(h, _)| *h == handle) {
                        return Err(YamlError::at(line, "found duplicate %TAG directive"));
                    }
                    self.tags.push((handle, prefix));
                }
                _ => break,
            }
            self.tokens.skip_token();
        }
        for (handle, prefix) in [("!", "!"), ("!!", "tag:yaml.org,2002:")] {
            if !self.tags.iter().any(|(h, _)| h == handle) {
                self.tags.push((handle.to_owned(), prefix.to_owned()));
            }
        }
        Ok(())
    }

    fn add(&mut self, line: u64, content: Content, anchor: Option<String>) -> Id {
        let id = self.tree.nodes.len();
        self.tree.nodes.push(Node { line, content });
        if let Some(anchor) = anchor {
            self.anchors.insert(anchor, id);
        }
        id
    }

    /// Nothing, where the next token is.
    fn empty(&mut self) -> Scanned<Id> {
        let line = self.line()?;
        Ok(self.nothing(line))
    }

    fn nothing(&mut self, line: u64) -> Id {
        self.add(line, Content::Scalar(Scalar { plain: true, ..Scalar::default() }), None)
    }

    fn node(&mut self, place: Place) -> Scanned<Id> {
        let line = self.line()?;
        if let Token::Alias(anchor) = self.peek()? {
            let anchor = anchor.clone();
            self.tokens.skip_token();
            let Some(of) = self.anchors.get(&anchor).copied() else {
                return Err(YamlError::Text(format!("unknown anchor '{anchor}' referenced")));
            };
            return Ok(self.add(line, Content::Alias { anchor, of }, None));
        }
        let Properties { anchor, tag } = self.properties()?;
        type Read = fn(&mut Grammar) -> Scanned<Vec<Id>>;
        let block = place != Place::Flow;
        let (content, read): (Content, Read) = match self.peek()? {
            Token::BlockEntry if place == Place::BlockEntry => {
                (Content::Sequence(Vec::new()), Grammar::indentless_sequence)
            }
            Token::Scalar { .. } => {
                let Placed { token: Token::Scalar { text, plain }, .. } = self.tokens.take()? else {
                    return self.error("did not find expected node content");
                };
                let plain = (plain && tag.is_empty()) || tag == "!";
                return Ok(self.add(line, Content::Scalar(Scalar { tag, text, plain }), anchor));
            }
            Token::FlowSequenceStart => (Content::Sequence(Vec::new()), Grammar::flow_sequence),
            Token::FlowMappingStart => (Content::Mapping(Vec::new()), Grammar::flow_mapping),
            Token::BlockSequenceStart if block => (Content::Sequence(Vec::new()), Grammar::block_sequence),
            Token::BlockMappingStart if block => (Content::Mapping(Vec::new()), Grammar::block_mapping),
            _ if anchor.is_some() || !tag.is_empty() => {
                let plain = tag.is_empty();
                return Ok(self.add(line, Content::Scalar(Scalar { tag, text: String::new(), plain }), anchor));
            }
            _ => return self.error("did not find expected node content"),
        };
        let id = self.add(line, content, anchor);
        self.fill(id, read)?;
        Ok(id)
    }

    /// Reads what is in a collection.
    fn fill(&mut self, id: Id, read: impl FnOnce(&mut Self) -> Scanned<Vec<Id>>) -> Scanned {
        if self.depth >= self.limit {
            return self.tokens.error(&format!("exceeded max depth of {}", self.limit));
        }
        self.depth += 1;
        let children = read(self)?;
        self.depth -= 1;
        if let Content::Sequence(items) | Content::Mapping(items) = &mut self.tree.nodes[id].content {
            *items = children;
        }
        Ok(())
    }

    /// An anchor and a tag, in either order.
    fn properties(&mut self) -> Scanned<Properties> {
        let mut anchor = self.anchor()?;
        let tag = self.tag()?;
        if anchor.is_none() && tag.is_some() {
            anchor = self.anchor()?;
        }
        Ok(Properties { anchor, tag: tag.unwrap_or_default() })
    }

    fn anchor(&mut self) -> Scanned<Option<String>> {
        let Token::Anchor(name) = self.peek()? else { return Ok(None) };
        let name = name.clone();
        self.tokens.skip_token();
        Ok(Some(name))
    }

    fn tag(&mut self) -> Scanned<Option<String>> {
        let Token::Tag { handle, suffix } = self.peek()?.clone() else { return Ok(None) };
        if handle.is_empty() {
            self.tokens.skip_token();
            return Ok(Some(suffix));
        }
        let prefix = self.tags.iter().find(|(h, _)| *h == handle).map(|(_, prefix)| prefix);
        let tag = prefix.map(|p| format!("{p}{suffix}")).filter(|t| !t.is_empty());
        let line = self.line()?;
        self.tokens.skip_token();
        // What comes behind it is looked at first.
        self.peek()?;
        match tag {
            Some(tag) => Ok(Some(tag)),
            None => Err(YamlError::at(line, "found undefined tag handle")),
        }
    }

    fn block_sequence(&mut self) -> Scanned<Vec<Id>> {
        self.tokens.skip_token();
        let mut items = Vec::new();
        loop {
            let line = self.line()?;
            if self.takes(&Token::BlockEntry)? {
                items.push(match self.peek()? {
                    Token::BlockEntry | Token::BlockEnd => self.nothing(line),
                    _ => self.node(Place::Block)?,
                });
            } else if self.takes(&Token::BlockEnd)? {
                return Ok(items);
            } else {
                return self.error("did not find expected '-' indicator");
            }
        }
    }

    /// A sequence whose items stand at the column of the keys around it.
    fn indentless_sequence(&mut self) -> Scanned<Vec<Id>> {
        let mut items = Vec::new();
        loop {
            let line = self.line()?;
            if !self.takes(&Token::BlockEntry)? {
                return Ok(items);
            }
            items.push(match self.peek()? {
                Token::BlockEntry | Token::Key | Token::Value | Token::BlockEnd => self.nothing(line),
                _ => self.node(Place::Block)?,
            });
        }
    }

    fn block_mapping(&mut self) -> Scanned<Vec<Id>> {
        self.tokens.skip_token();
        let mut children = Vec::new();
        loop {
            let line = self.line()?;
            if self.takes(&Token::Key)? {
                children.push(self.block_entry(line)?);
                let line = self.line()?;
                children.push(match self.takes(&Token::Value)? {
                    true => self.block_entry(line)?,
                    false => self.nothing(line),
                });
            } else if self.takes(&Token::BlockEnd)? {
                return Ok(children);
            } else {
                return self.error("did not find expected key");
            }
        }
    }

    /// A key or a value, behind its indicator.
    fn block_entry(&mut self, line: u64) -> Scanned<Id> {
        match self.peek()? {
            Token::Key | Token::Value | Token::BlockEnd => Ok(self.nothing(line)),
            _ => self.node(Place::BlockEntry),
        }
    }

    fn flow_sequence(&mut self) -> Scanned<Vec<Id>> {
        self.tokens.skip_token();
        let mut items = Vec::new();
        loop {
            if self.takes(&Token::FlowSequenceEnd)? {
                return Ok(items);
            }
            if !items.is_empty() && !self.takes(&Token::FlowEntry)? {
                return self.error("did not find expected ',' or ']'");
            }
            let line = self.line()?;
            match self.peek()? {
                Token::FlowSequenceEnd => {}
                Token::Key => {
                    self.tokens.skip_token();
                    let id = self.add(line, Content::Mapping(Vec::new()), None);
                    self.fill(id, Grammar::single_pair)?;
                    items.push(id);
                }
                _ => items.push(self.node(Place::Flow)?),
            }
        }
    }

    /// `[a: b]` has a mapping in it.
    fn single_pair(&mut self) -> Scanned<Vec<Id>> {
        let key = match self.peek()? {
            Token::Value | Token::FlowEntry | Token::FlowSequenceEnd => {
                let line = self.line()?;
                // As libyaml does.
                self.tokens.skip_token();
                self.nothing(line)
            }
            _ => self.node(Place::Flow)?,
        };
        let value = self.flow_value(&Token::FlowSequenceEnd)?;
        Ok(vec![key, value])
    }

    fn flow_value(&mut self, end: &Token) -> Scanned<Id> {
        if self.takes(&Token::Value)? {
            let next = self.peek()?;
            if *next != Token::FlowEntry && next != end {
                return self.node(Place::Flow);
            }
        }
        self.empty()
    }

    fn flow_mapping(&mut self) -> Scanned<Vec<Id>> {
        self.tokens.skip_token();
        let mut children = Vec::new();
        loop {
            if self.takes(&Token::FlowMappingEnd)? {
                return Ok(children);
            }
            if !children.is_empty() && !self.takes(&Token::FlowEntry)? {
                return self.error("did not find expected ',' or '}'");
            }
            if self.takes(&Token::Key)? {
                children.push(match self.peek()? {
                    Token::Value | Token::FlowEntry | Token::FlowMappingEnd => self.empty()?,
                    _ => self.node(Place::Flow)?,
                });
                children.push(self.flow_value(&Token::FlowMappingEnd)?);
            } else if *self.peek()? != Token::FlowMappingEnd {
                children.push(self.node(Place::Flow)?);
                children.push(self.empty()?);
            }
        }
    }
}
